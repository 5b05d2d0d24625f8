"""The public surface, and the direction of dependencies between the rooms."""

from __future__ import annotations

import ast
import inspect
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


def test_what_there_is_not():
    with pytest.raises(AttributeError, match="module 'jobq' has no attribute 'nothing'"):
        jobq.nothing  # noqa: B018


def test_every_public_name_says_what_it_is():
    for name in jobq.__all__:
        if name != "inject":
            assert inspect.getdoc(getattr(jobq, name)), name


def imports(path: Path) -> set[str]:
    """Modules that a file imports, those for type checkers only left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def modules(room: str) -> list[Path]:
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("engine", ("jobq.http", "jobq.cli", "jobq.logging", "aiohttp")),
        ("engine/store", ("jobq.engine.queue", "jobq.engine.worker", "jobq.engine.producer", "jobq.engine.job")),
        ("http", ("jobq.cli", "jobq.engine.store", "jobq.engine.lua", "jobq.engine.keys")),
        ("errors.py", ("jobq.",)),
        ("redact.py", ("jobq.",)),
        ("settings.py", ("jobq.engine", "jobq.http", "jobq.cli")),
        ("engine/job.py", ("jobq.",)),
        ("engine/ids.py", ("jobq.",)),
    ],
)
def test_arrows(room: str, forbidden: tuple[str, ...]):
    for path in modules(room):
        against = [name for name in imports(path) if name.startswith(forbidden)]
        assert not against, f"{path.relative_to(PACKAGE)} imports {against}"


def test_only_the_store_imports_redis():
    rooms = {
        path.relative_to(PACKAGE).parts[:2]
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] in ("redis", "hiredis") for name in imports(path))
    }
    assert rooms == {("engine", "store")}


def test_importing_jobq_costs_no_http():
    code = "import jobq, sys; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_tree_of_errors_is_drawn_as_it_is():
    drawn = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line.strip().startswith(("x ", "+ "))}
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert drawn == classes - {"JobqError"}
    for name in classes:
        assert inspect.getdoc(getattr(errors, name)), f"{name} says when it comes"
