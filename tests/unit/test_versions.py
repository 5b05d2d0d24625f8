"""Versions of payloads: what a task refuses where it is written, and how a payload is converted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jobq import InvalidJob, Queue
from jobq.engine.task.versions import Inconvertible, Versions


def versions(current: int, **steps: Any) -> Versions:
    """Versions of a task "send"; ``v1=`` converts version 1."""
    made = Versions("send", current)
    for name, fn in steps.items():
        made.add(int(name[1:]), fn)
    return made


def test_steps_follow_one_another_and_may_change_their_argument():
    def second(old: dict[str, Any]) -> dict[str, Any]:
        old["b"] = old.pop("a") + 1
        return old

    made = versions(3, v1=lambda old: {"a": old["x"] * 2}, v2=second)
    assert bytes(made.convert(b'{"x":4}', 1)) == b'{"b":9}'
    assert bytes(made.convert(b'{"a":4}', 2)) == b'{"b":5}'
    assert bytes(made.convert(b'{"b":1}', 3)) == b'{"b":1}'


def test_null_is_an_empty_payload():
    assert bytes(versions(2, v1=lambda old: {"n": len(old)}).convert(b"null", 1)) == b'{"n":0}'


@pytest.mark.parametrize(
    ("payload", "version", "says"),
    [
        (b"{}", 3, "its payload has version 3, and send has version 2 here"),
        (b"{", 1, "not JSON"),
        (b"\xff", 1, "not JSON"),
        (b"[" * 5000 + b"]" * 5000, 1, "is not"),  # newer Pythons read it, and it is no object
        (b"[1]", 1, "is not an object"),
        (b'{"wrong":1}', 1, "upcast(1) of send raised KeyError: 'x'"),
        (b'{"x":"list"}', 1, "returned list and not the new payload, a dict"),
        (b'{"x":"object"}', 1, "made a payload that is not JSON"),
        (b'{"x":"nan"}', 1, "made a payload that is not JSON"),
    ],
)
def test_a_payload_that_cannot_be_converted_says_why(payload: bytes, version: int, says: str):
    answers: dict[str, Any] = {"list": [], "object": {"o": object()}, "nan": {"n": float("nan")}}
    made = versions(2, v1=lambda old: answers[old["x"]])
    with pytest.raises(Inconvertible) as caught:
        made.convert(payload, version)
    assert says in str(caught.value)
    assert caught.value.newer == (version == 3)


def test_a_missing_step_is_named():
    with pytest.raises(Inconvertible, match=r"send has no @send\.upcast\(2\) here"):
        versions(3, v1=lambda old: old).convert(b"{}", 1)


def test_what_an_upcast_raises_is_cut_and_its_passwords_are_masked():
    def upcast(old: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("redis://user:hunter2@host " + "x" * 1_000_000)

    with pytest.raises(Inconvertible) as caught:
        versions(2, v1=upcast).convert(b"{}", 1)
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 1000


async def asynchronous(old: dict[str, Any]) -> dict[str, Any]:
    return old


@pytest.mark.parametrize(
    ("version", "fn", "says"),
    [
        (2, lambda old: old, "the task has version 2: write"),
        (0, lambda old: old, "the task has version 2: write"),
        (True, lambda old: old, "takes the version of payloads"),
        ("1", lambda old: old, "takes the version of payloads"),
        (1, asynchronous, "is async"),
        (1, lambda: {}, "does not take one argument"),
        (1, lambda old, more: {}, "does not take one argument"),
    ],
)
def test_an_upcast_that_cannot_be_used_is_refused_where_it_is_written(version: Any, fn: Any, says: str):
    queue = Queue("test")

    @queue.task(version=2)
    async def send() -> None: ...

    with pytest.raises(TypeError, match=says):
        send.upcast(version)(fn)


def test_two_upcasts_from_one_version_are_refused():
    made = versions(2, v1=lambda old: old)
    with pytest.raises(TypeError, match="two upcasts from version 1"):
        made.add(1, lambda old: old)


@pytest.mark.parametrize("version", [0, -1, 1_000_001, True, "2", None, 1.0])
def test_a_version_is_a_whole_number(version: Any):
    with pytest.raises(InvalidJob, match=r"version is .*: it takes 1 to 1000000"):
        Queue("test").task(version=version)(asynchronous)
    with pytest.raises(InvalidJob, match=r"version is .*: it takes 1 to 1000000"):
        Queue("test").new("x", version=version)


def test_an_alias_is_a_name_of_its_own():
    queue = Queue("test")
    queue.task(name="a", aliases=["b"])(asynchronous)
    for taken in ("a", "b"):
        with pytest.raises(InvalidJob, match=f"has a handler for '{taken}' already"):
            queue.task(name=taken)(asynchronous)
        with pytest.raises(InvalidJob, match=f"has a handler for '{taken}' already"):
            queue.task(name=f"new {taken}", aliases=[taken])(asynchronous)
        assert set(queue.tasks) == {"a", "b"}, "a task that was refused is registered under no name"
    with pytest.raises(InvalidJob, match="task 'c' has the name 'd' twice: remove it from aliases="):
        queue.task(name="c", aliases=["d", "d"])(asynchronous)
    with pytest.raises(TypeError, match="takes a list of names"):
        queue.task(name="c", aliases="old")(asynchronous)
    with pytest.raises(TypeError, match="takes a list of names"):
        queue.task(name="c", aliases=[1])(asynchronous)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(InvalidJob, match="printable"):
        queue.task(name="c", aliases=["a\nb"])(asynchronous)


def test_msgspec_keeps_the_version_behind_the_payload():
    """Scripts replace everything from the payload on."""
    from jobq.engine.model.job import Spec

    row = msgspec.json.encode(Spec("t", payload=msgspec.Raw(b"{}"), version=2, metadata={"m": 1}))
    assert row == b'{"type":"t","payload":{},"version":2,"metadata":{"m":1}}'
