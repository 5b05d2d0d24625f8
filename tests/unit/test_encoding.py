"""A value of a user is stored only if everybody can read the same value back."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
import pytest

from jobq import NewJob, Queue
from jobq.engine.model.encoding import encode
from jobq.engine.model.outcome import encode_result
from jobq.errors import InvalidJob, InvalidResult


class Point(msgspec.Struct):
    x: float
    more: Any = None


@dataclass
class Size:
    width: float


class Level(Enum):
    NONE = math.nan
    HIGH = 1.5


NAN, INFINITE = math.nan, math.inf

UNSOUND = [
    msgspec.Raw(b"oops"),
    msgspec.Raw(b""),
    msgspec.Raw(b"1 2"),
    msgspec.Raw(b'{"a":1'),
    msgspec.Raw(b'"\xff"'),
    msgspec.Raw(b"1e999"),
    msgspec.Raw(b'"\\ud800"'),
    msgspec.Raw(b"[" * 5000 + b"]" * 5000),
    {"a": [msgspec.Raw(b"-1e999")]},
    {"a": msgspec.Raw(b"oops")},
    [1, [msgspec.Raw(b",")]],
    Point(1.0, msgspec.Raw(b"}")),
    NAN,
    INFINITE,
    -INFINITE,
    {"a": NAN},
    [None, [1.5, INFINITE]],
    {"a": ({"b": {1, NAN}},)},
    Point(NAN),
    Size(INFINITE),
    [Level.NONE],
]


def name(value: Any) -> str:
    """Of a case, the same in each process: without addresses."""
    return re.sub(r" object at 0x[0-9a-f]+", "", repr(value))[:40]


@pytest.mark.parametrize("value", UNSOUND, ids=name)
def test_values_that_could_not_be_read_back_are_refused(value: Any):
    with pytest.raises(ValueError, match=r"not one JSON value|cannot be encoded as JSON"):
        encode(value)
    with pytest.raises(InvalidResult, match="the handler's result cannot be encoded as JSON"):
        encode_result(value)
    with pytest.raises(InvalidJob, match="payload of 't'"):
        Queue("q", "unix:///nowhere").new("t", value)
    with pytest.raises(InvalidJob, match="metadata cannot be encoded as JSON"):
        Queue("q", "unix:///nowhere").new("t", metadata={"m": value})


@pytest.mark.parametrize("value", [NAN, [INFINITE], {"a": [None, NAN]}], ids=repr)
def test_a_call_with_a_number_that_json_lacks_is_refused(value: Any):
    def handler(value: Any, other: Any = None) -> None: ...

    task = Queue("q", "unix:///nowhere").task(handler)
    with pytest.raises(InvalidJob, match=r"payload of 'handler': (nan|inf) cannot be encoded as JSON; use None"):
        task.new((value,), {}, task.defaults)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, b"null"),
        ("null", b'"null"'),
        (1.5, b"1.5"),
        ([None, 1.5, "nan"], b'[null,1.5,"nan"]'),
        ([None, Point(1.5), Size(2.5), Level.HIGH], b'[null,{"x":1.5,"more":null},{"width":2.5},1.5]'),
        (msgspec.Raw(b'{"big":123456789012345678901234567890}'), b'{"big":123456789012345678901234567890}'),
        ({"a": msgspec.Raw(b" [null] ")}, b'{"a": [null] }'),
    ],
    ids=name,
)
def test_sound_values_are_encoded(value: Any, encoded: bytes):
    assert encode(value) == encoded


HAND_MADE = [b"oops", b"", b"NaN", b"1e999", b'{"a":-1e999}', b'{"a":"\\ud800"}', b'"\xff"', b"[" * 5000 + b"]" * 5000]


@pytest.mark.parametrize("payload", HAND_MADE, ids=lambda payload: str(payload[:12]))
@pytest.mark.parametrize("types", [False, True], ids=["without tasks", "with tasks"])
async def test_a_payload_that_was_made_by_hand_is_stored_only_if_everybody_can_read_it(
    queue: Queue, payload: bytes, types: bool
):
    if types:

        @queue.task
        async def send(a: Any = None, **more: Any) -> None: ...

    for enqueue in (queue.submit, lambda job: queue.submit_many([job])):
        with pytest.raises(InvalidJob, match="payload of 'send'"):
            await enqueue(NewJob("send", msgspec.Raw(payload)))
    assert (await queue.stats()).waiting == 0
