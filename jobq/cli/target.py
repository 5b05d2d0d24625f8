"""Finds the queues of a target: ``package.module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jobq.engine.queue.queue import Queue
from jobq.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType


def load_target(target: str) -> list[Queue]:
    """Import the module, with the working directory on ``sys.path``, and return its queue or queues.

    ``:name`` may be omitted if the module has only one queue.

    :raises TargetError: there is no queue there. The text says why, and which names exist.
    """
    module_name, colon, name = target.rpartition(":") if ":" in target else (target, "", "")
    if not module_name or (colon and not name):
        raise TargetError(f"{target!r} is not a target; write package.module:name or path/file.py:name")
    module = _import(module_name)
    there = _queues_in(module)
    if not colon:
        return _only(target, there)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise TargetError(f"{module_name} has no {name!r}; {_names(there)}")
        value = getattr(value, part)
    return _as_queues(target, value, there)


def _as_queues(target: str, value: Any, there: dict[str, Queue]) -> list[Queue]:
    if isinstance(value, Queue):
        return [value]
    if isinstance(value, list | tuple):
        items = list(cast("list[object]", value))
        queues = [item for item in items if isinstance(item, Queue)]
        if items and len(queues) == len(items):
            return queues
    raise TargetError(f"{target} is {_kind(value)}, not a queue or a list of queues; {_names(there)}")


def _kind(value: Any) -> str:
    if value in ([], ()):
        return "empty"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _only(target: str, there: dict[str, Queue]) -> list[Queue]:
    if len(set(map(id, there.values()))) == 1:
        return [next(iter(there.values()))]
    raise TargetError(f"{target}: say which queue, as in {target}:name; {_names(there)}")


def _queues_in(module: ModuleType) -> dict[str, Queue]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Queue)}


def _names(there: Iterable[str]) -> str:
    names = ", ".join(sorted(there))
    return f"its queues are: {names}" if names else "it has no queues at its top level"


def _import(module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if module.endswith(".py") or "/" in module:
        return _import_file(Path(module))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise TargetError(f"there is no module {module!r} here ({here}) or installed") from None
        raise TargetError(_broken(module, error)) from error
    except Exception as error:
        raise TargetError(_broken(module, error)) from error


def _import_file(path: Path) -> ModuleType:
    """Import a file: by its stem if ``import`` finds it, else under a name that no other module has."""
    if not path.is_file():
        hint = f"; did you mean {path}.py?" if Path(f"{path}.py").exists() else ""
        raise TargetError(f"there is no file {path} in {Path.cwd()}{hint}")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        # Append it, so that a file `email.py` does not replace the standard library's `email`.
        sys.path.append(str(path.parent))
    name = path.stem if _finds(path.stem, path) else f"jobq_target_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file, because its name does not end in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise TargetError(_broken(str(path), error)) from error
    return module


def _finds(name: str, path: Path) -> bool:
    """Whether ``import name`` finds this file."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return bool(spec and spec.origin and Path(spec.origin).resolve() == path)
    return False


def _broken(module: str, error: Exception) -> str:
    """The error in one line, with its place in the user's code."""
    where = ""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}"
    elif frames := traceback.extract_tb(error.__traceback__):
        where = f"{frames[-1].filename}, line {frames[-1].lineno}"
    return f"importing {module} failed: {type(error).__name__}: {error} ({where})"
