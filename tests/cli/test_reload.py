"""``--reload``: the files that are watched, and the effect of a change."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

from jobq.cli import reload

if TYPE_CHECKING:
    from pathlib import Path


def test_packages_count_with_all_below_and_single_modules_with_their_neighbours(tmp_path: Path, monkeypatch):
    for name in (
        "reload_app/__init__.py",
        "reload_app/sub/tasks.py",
        "reload_app/.venv/x.py",
        "reload_app/__pycache__/x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    single = tmp_path / "single"
    single.mkdir()
    for name in ("reload_single.py", "neighbour.py", "data.json"):
        (single / name).touch()
    (single / "below").mkdir()
    (single / "below" / "other.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(single))
    try:
        sysconfig.get_config_vars()  # imports a module of the standard library with a name of this build
        for name in ("reload_app.sub.tasks", "reload_single"):
            importlib.import_module(name)
        packages, folders = reload.code_roots()
        assert tmp_path / "reload_app" in packages
        assert single in folders
        assert not any("site-packages" in path.parts or path.name == "jobq" for path in packages | folders)
        assert not any(path.is_relative_to(sysconfig.get_path("stdlib")) for path in packages | folders)
        found = reload.look({tmp_path / "reload_app"}, {single})
    finally:
        for name in ("reload_app", "reload_app.sub", "reload_app.sub.tasks", "reload_single"):
            sys.modules.pop(name, None)
    assert sorted(os.path.relpath(path, tmp_path) for path in found) == [
        "reload_app/__init__.py",
        "reload_app/sub/tasks.py",
        "single/neighbour.py",
        "single/reload_single.py",
    ]


async def test_a_change_a_new_file_and_a_removed_one_are_noticed(tmp_path: Path, monkeypatch):
    file = tmp_path / "app.py"
    file.touch()
    monkeypatch.setattr(reload, "EVERY", 0.0)
    monkeypatch.setattr(reload, "code_roots", lambda: ({tmp_path}, set()))
    times = 0

    class EnoughError(Exception):
        pass

    def changed() -> None:
        nonlocal times
        times += 1
        if times == 1:
            (tmp_path / "new.py").touch()
        elif times == 2:
            file.unlink()
        else:
            raise EnoughError

    os.utime(file, ns=(1, 1))
    looks = 0
    look = reload.look

    def look_and_change(*roots: set[Path]) -> dict[str, int]:
        nonlocal looks
        looks += 1
        if looks == 2:
            os.utime(file, ns=(2, 2))
        return look(*roots)

    monkeypatch.setattr(reload, "look", look_and_change)
    with pytest.raises(EnoughError):
        await reload.watch(changed)
    assert times == 3


def test_work_runs_the_new_code(start, tasks, redis_url, jobq, tmp_path):
    work = start("work", tasks, "--reload", JOBQ_REDIS_URL=redis_url)
    work.wait_line("worker started")
    file = tmp_path / "cli_tasks.py"
    text = file.read_text()
    file.write_text("this is no Python")
    work.wait_line("it is started again when the code changes")
    file.write_text(text.replace("return word", "return 'changed'"))
    work.wait_line("worker started")
    assert "changed" in jobq("enqueue", "echo", "--queue", "tasks", "--wait", "20s").out


def test_reload_needs_a_process_to_restart(jobq, tasks):
    said = jobq("work", tasks, "--reload", "--processes", "0")
    assert (said.code, "--processes 1" in said.err) == (2, True)
