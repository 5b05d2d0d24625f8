"""``--reload`` notices when a file of the target's code changes.

It reads the modification times twice a second. There are few files, and this needs no other package.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobq.engine.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

EVERY: Final = 0.5
"""Seconds between two checks."""
INSTALLED: Final = {"site-packages", "dist-packages"}
STANDARD: Final = Path(sysconfig.get_path("stdlib")).resolve()
"""The standard library. ``sys.stdlib_module_names`` lacks its modules that have names of one build."""
LEFT_OUT: Final = {"__pycache__", "node_modules", "venv", *INSTALLED}


def code_roots() -> tuple[set[Path], set[Path]]:
    """The directories of all code that is imported now: packages, and directories of single modules.

    Installed packages, the standard library and jobq itself are left out.
    """
    packages: set[Path] = set()
    folders: set[Path] = set()
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        file = getattr(module, "__file__", None)
        if not file or top in sys.stdlib_module_names or top in ("jobq", "__main__"):
            continue
        path = Path(file).resolve()
        if INSTALLED & set(path.parts) or path.is_relative_to(STANDARD) or path.suffix != ".py":
            continue
        # The package of app.tasks.mail is two levels above app/tasks/mail.py, or three above mail/__init__.py.
        depth = name.count(".") + (path.name == "__init__.py")
        if depth:
            packages.add(path.parents[depth - 1])
        else:
            folders.add(path.parent)
    return packages, folders


def look(packages: set[Path], folders: set[Path]) -> dict[str, int]:
    """The Python files with their modification times."""
    found: dict[str, int] = {}
    for root in packages | folders:
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if root in packages and name not in LEFT_OUT and name[:1] != "."]
            for name in files:
                path = os.path.join(folder, name)  # noqa: PTH118 - a Path costs more than the look
                try:
                    if name.endswith(".py"):
                        found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
                except OSError:
                    continue  # The file was removed meanwhile.
    return found


async def watch(changed: Callable[[], None]) -> None:
    """Call ``changed`` whenever a file of the imported code is changed, added or removed. Never returns."""
    packages, folders = code_roots()
    before = look(packages, folders)
    log.info("reloading when a file changes", places=sorted(map(str, packages | folders)))
    while True:
        await asyncio.sleep(EVERY)
        now = await asyncio.to_thread(look, packages, folders)
        if now != before:
            paths = sorted({path for path, _ in now.items() ^ before.items()})
            log.info("code has changed; restarting", files=paths[:5])
            before = now
            changed()
