"""The public names, and the direction of dependencies between the packages."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jobq
from jobq import errors

PACKAGE = Path(jobq.__file__).parent


def test_exported_members():
    assert jobq.__all__ == sorted(jobq.__all__)
    for name in jobq.__all__:
        assert hasattr(jobq, name)
    own = {name for name, value in vars(jobq).items() if getattr(value, "__module__", "").startswith("jobq.")}
    assert own <= set(jobq.__all__), "what is imported into the package is public"


def test_every_exception_can_be_imported_from_the_package():
    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "jobq.errors"
    }
    assert own <= set(jobq.__all__)


INTERNAL = {
    "AsyncQueue",
    "Blocking",
    "Defaults",
    "Given",
    "HookCalls",
    "CostBy",
    "GroupBy",
    "LimitBy",
    "RetryPolicy",
    "QueueGiven",
    "ScheduleGiven",
    "Owner",
    "Sender",
    "Spec",
    "Store",
    "TaskGiven",
}
"""Types of arguments that only jobq makes, and of keyword arguments that are unpacked."""


def named_by(place: str, annotation: object) -> set[tuple[str, str]]:
    return {(place, word) for word in re.findall(r"[A-Za-z_]\w*", str(annotation))}


def test_what_public_functions_take_and_return_is_exported():
    """A user must be able to annotate a variable with whatever a public function gives."""
    named: set[tuple[str, str]] = set()
    for name in jobq.__all__:
        public = getattr(jobq, name)
        for base in getattr(public, "__mro__", ()):
            if not base.__module__.startswith("jobq."):
                continue
            members = {"__init__": vars(base).get("__init__")}
            members |= {member: value for member, value in vars(base).items() if member[0] != "_"}
            for member, value in members.items():
                function = getattr(value, "fget", value)
                if inspect.isfunction(function):
                    for annotation in function.__annotations__.values():
                        named |= named_by(f"{name}.{member}", annotation)
            for field, annotation in vars(base).get("__annotations__", {}).items():
                if field[0] != "_":
                    named |= named_by(f"{name}.{field}", annotation)
    ours = {
        found
        for path in modules("engine")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for found in [node.name]
        if not found.startswith("_")
    }
    missing = {(place, word) for place, word in named if word in ours - INTERNAL - set(jobq.__all__)}
    assert not missing
    assert {word for _, word in named} >= INTERNAL, "a name in INTERNAL is not used any more"


def test_an_unknown_attribute_of_the_package_raises():
    with pytest.raises(AttributeError, match="module 'jobq' has no attribute 'nothing'"):
        jobq.nothing  # noqa: B018


def test_every_public_name_has_a_docstring():
    for name in jobq.__all__:
        if name != "inject":
            assert inspect.getdoc(getattr(jobq, name)), name


def imports(path: Path) -> set[str]:
    """Modules that a file imports, including those for type checkers: an annotation is a dependency too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules(package: str) -> list[Path]:
    path = PACKAGE / package
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


ENGINE = ("model", "schedule", "store", "task", "queue", "worker")
"""The packages of the engine from the bottom up. Each may import those before it."""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("engine", ("jobq.http", "jobq.cli", "jobq.logging", "aiohttp")),
        ("http", ("jobq.cli", "jobq.engine.store.lua", "jobq.engine.store.keys")),
        ("errors.py", ("jobq.engine", "jobq.http", "jobq.cli", "jobq.settings", "jobq.redact", "jobq.printable")),
        ("duration.py", ("jobq.",)),
        ("redact.py", ("jobq.",)),
        ("printable.py", ("jobq.",)),
        ("settings.py", ("jobq.engine", "jobq.http", "jobq.cli")),
    ],
)
def test_packages_import_only_packages_below_them(package: str, forbidden: tuple[str, ...]):
    for path in modules(package):
        against = [name for name in imports(path) if name.startswith(forbidden)]
        assert not against, f"{path.relative_to(PACKAGE)} imports {against}"


def test_packages_of_the_engine_import_only_packages_below_them():
    back: set[tuple[str, str]] = set()
    for place, package in enumerate(ENGINE):
        higher = tuple(f"jobq.engine.{other}." for other in ENGINE[place + 1 :])
        for path in modules(f"engine/{package}"):
            name = path.relative_to(PACKAGE / "engine").as_posix()
            back |= {(name, ".".join(module.split(".")[:4])) for module in imports(path) if module.startswith(higher)}
    assert not back


@pytest.mark.parametrize("package", [*(f"engine/{name}" for name in ENGINE), "http", "cli"])
def test_the_modules_of_a_package_do_not_import_each_other_in_a_circle(package: str):
    """Annotations are included. A file that needs a type of a file above it defines a small Protocol instead."""
    start = f"jobq.{package.replace('/', '.')}."
    arrows = {
        path.relative_to(PACKAGE / package).with_suffix("").as_posix().split("/")[0]: {
            name.removeprefix(start).split(".")[0] for name in imports(path) if name.startswith(start)
        }
        for path in modules(package)
        if path.name != "__init__.py"
    }
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"these import each other, or something that does: {sorted(arrows)}"


def test_only_the_store_imports_redis():
    packages = {
        path.relative_to(PACKAGE).parts[:2]
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] in ("redis", "hiredis") for name in imports(path))
    }
    assert packages == {("engine", "store")}


def test_importing_jobq_costs_no_http():
    code = "import jobq, sys; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_docstring_of_errors_shows_the_real_tree():
    drawn = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line.strip().startswith(("x ", "+ "))}
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert drawn == classes - {"JobqError"}
    for name in classes:
        assert inspect.getdoc(getattr(errors, name)), f"{name} says when it comes"
