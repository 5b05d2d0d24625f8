"""The messages between a worker and its child processes: msgpack, each with its length before it."""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec

from jobq.engine.model.outcome import Facts  # noqa: TC001 - msgspec reads the annotation

CLOSING: Final = 2.0
"""Seconds that an idle child may take to close its dependencies of scope "worker"."""
MESSAGE_MAX: Final = 64 << 20
"""Bytes of one message. The worker holds a whole message in memory, so a child must not send a larger one."""

HEAD: Final = struct.Struct("!I")
"""The length before a message."""

_encode = msgspec.msgpack.Encoder().encode


class Request(msgspec.Struct, frozen=True, tag=True):
    """From the worker to a child: run this job.

    ``number`` counts the requests of one child. ``spec`` is the encoded row. ``levels`` are the levels of the worker's
    loggers by name; the root logger is "".
    """

    number: int
    module: str
    file: str | None
    qualname: str
    queue: str
    id: str
    attempt: int
    worker: str
    fence: int
    spec: bytes
    levels: dict[str, int]
    snoozes: int = 0
    rate_limited: int = 0


class WaitAnswer(msgspec.Struct, frozen=True, tag=True):
    """From the worker to a child: the answer to the ``Wait`` with this number. ``others``: so many handlers wait for
    jobs already that this one may not; None: it may."""

    ask: int
    others: int | None = None


class RaisedError(msgspec.Struct, frozen=True):
    """The error that a handler raised.

    ``args`` and ``state`` are the encoded arguments and attributes of the exception. They are None if the exception
    cannot be recreated from them.
    """

    module: str
    qualname: str
    facts: Facts
    args: bytes | None = None
    state: bytes | None = None


class Message(msgspec.Struct, frozen=True):
    """From a child to the worker.

    ``number`` is that of the request and ``pid`` is the sender's process id: the worker drops messages of earlier runs
    and of forked copies. ``data`` is JSON; for "log" it is the text, for "spent" the unit and the amount, for "wait" a
    ``Wait`` and for "waited" the awaited job's id. After a message with ``leaving`` the child ends.
    """

    kind: Literal["taken", "progress", "log", "spent", "record", "event", "wait", "waited", "done", "error"]
    number: int
    pid: int
    data: bytes = b""
    error: RaisedError | None = None
    leaving: bool = False


class Wait(msgspec.Struct, frozen=True):
    """The handler wants to wait for a job of that queue. ``ask`` counts these messages of one child."""

    queue: str
    job_id: str
    ask: int


encode_wait = _encode
decode_wait = msgspec.msgpack.Decoder(Wait).decode
decode_from_worker = msgspec.msgpack.Decoder(Request | WaitAnswer).decode
decode_message = msgspec.msgpack.Decoder(Message).decode


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it.

    :raises ValueError: it is larger than ``MESSAGE_MAX``.
    """
    body = _encode(message)
    if len(body) > MESSAGE_MAX:
        raise ValueError(f"the message has {len(body)} bytes, the limit is {MESSAGE_MAX}")
    return HEAD.pack(len(body)) + body
