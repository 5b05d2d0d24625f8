"""From "module:name" to queues, and the errors if there are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobq.cli.target import load_target
from jobq.errors import TargetError

MODULE = """
from jobq import Queue
a = Queue("a")
b = Queue("b")
both = [a, b]
mixed = [a, 1]
nothing = []
number = 3
class Inside:
    queue = a
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch):
    """A working directory for this test. The import system is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def names(target: str) -> list[str]:
    return [queue.name for queue in load_target(target)]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("targets_a:a", ["a"]),
        ("targets_a:both", ["a", "b"]),
        ("targets_a:Inside.queue", ["a"]),
        ("targets_a.py:b", ["b"]),
        ("./targets_a.py:b", ["b"]),
        ("deep/one.py:queue", ["one"]),
        ("deep/one.py", ["one"]),
        ("package.part:queue", ["part"]),
    ],
)
def test_targets_that_lead_to_queues(target: str, expected: list[str]):
    Path("targets_a.py").write_text(MODULE)
    Path("deep").mkdir()
    Path("deep/one.py").write_text("from jobq import Queue\nqueue = Queue('one')\n")
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    Path("package/part.py").write_text("from jobq import Queue\nqueue = Queue('part')\n")
    assert names(target) == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("targets_b:missing", "targets_b has no 'missing'; its queues are: a, b"),
        ("targets_b:number", "targets_b:number is an int, not a queue or a list of queues"),
        ("targets_b:mixed", "is a list, not a queue or a list of queues; its queues are: a, b"),
        ("targets_b:nothing", "is empty, not a queue"),
        ("targets_b", "say which queue, as in targets_b:name; its queues are: a, b"),
        ("targets_b:", "write package.module:name or path/file.py:name"),
        (":queue", "write package.module:name or path/file.py:name"),
        ("no_such_module:queue", "there is no module 'no_such_module' here"),
        ("no/such/file.py:queue", "there is no file no/such/file.py"),
        ("bare:queue", "bare has no 'queue'; it has no queues at its top level"),
        ("broken:queue", r"importing broken failed: ZeroDivisionError: .*broken.py, line 2"),
        ("broken.py:queue", r"importing .*broken.py failed: ZeroDivisionError: .*broken.py, line 2"),
        ("unparsable.py:queue", r"SyntaxError: .*unparsable.py, line 1"),
        ("needs:queue", "importing needs failed: ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_targets_that_do_not_lead_to_queues(target: str, message: str):
    Path("targets_b.py").write_text(MODULE)
    Path("bare.py").touch()
    Path("broken.py").write_text("\n1 / 0\n")
    Path("unparsable.py").write_text("def (\n")
    Path("needs.py").write_text("import not_installed\n")
    with pytest.raises(TargetError, match=message):
        load_target(target)


def test_a_module_here_is_hinted_at():
    Path("folder").mkdir()
    Path("folder/tasks.py").touch()
    with pytest.raises(TargetError, match=r"did you mean folder/tasks\.py\?"):
        load_target("folder/tasks:queue")


def test_a_file_named_like_a_standard_module_hides_nothing():
    Path("examples").mkdir()
    Path("examples/email.py").write_text("from jobq import Queue\nqueue = Queue('mail')\n")
    assert names("examples/email.py:queue") == ["mail"]
    import email

    assert Path(email.__file__).parent.name == "email", "the standard library's"


def test_loading_twice_gives_the_same_queue():
    Path("twice.py").write_text("from jobq import Queue\nqueue = Queue('twice')\n")
    assert load_target("twice.py:queue")[0] is load_target("twice:queue")[0]
