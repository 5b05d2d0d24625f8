"""How a run ended, as data, and what follows from it. The only place where retries are decided."""

from __future__ import annotations

import time
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.backoff import delay_ms
from jobq.engine.job import AttemptError
from jobq.engine.store import redact
from jobq.errors import Discard, Retry

if TYPE_CHECKING:
    from jobq.engine.job import Spec

MESSAGE_MAX: Final = 2_000
TRACEBACK_MAX: Final = 8_000
"""Characters kept of an attempt's traceback: half from its start, half from its end."""

_encode = msgspec.json.Encoder().encode


class InvalidPayload(Exception):
    """The payload does not fit the handler's signature (any more); running it again cannot help."""


class Timeout(Exception):
    """The run took longer than the job's timeout."""


class LeaseExpired(Exception):
    """The worker stopped renewing: it was killed, lost its network, or hung."""


class ProcessCrashed(Exception):
    """The child process that ran the handler died."""


class Reported(Exception):
    """An error that a child process reported: its own type, message and traceback."""

    def __init__(self, type_: str, message: str, trace: str | None, *, final: bool, delay: float | None) -> None:
        self.type = type_
        self.trace = trace
        self.final = final
        self.delay = delay
        super().__init__(message)


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt. ``delay`` ms until the next one; None: there is none."""

    record: bytes
    delay: int | None
    type: str
    message: str


def cut(text: str, most: int) -> str:
    """At most ``most`` characters; what goes is the middle."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... {len(text) - most} characters left out ...\n{text[-half:]}"


def format_traceback(error: BaseException) -> str | None:
    """The handler's part of the traceback, bounded, without passwords in URLs."""
    if isinstance(error, Reported):
        return error.trace
    frames = error.__traceback__
    # the first frames are the engine's own
    while frames is not None and "/jobq/engine/" in frames.tb_frame.f_code.co_filename.replace("\\", "/"):
        frames = frames.tb_next
    if frames is None and error.__cause__ is None:
        return None
    lines = traceback.format_exception(type(error), error, frames)
    return cut(redact("".join(lines)), TRACEBACK_MAX)


def type_name(error: BaseException) -> str:
    """``ValueError``, ``package.SomeError``; the engine's own verdicts by their bare names."""
    if isinstance(error, Reported):
        return error.type
    kind = type(error)
    if kind.__module__ in ("builtins", "jobq.errors", __name__):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def judge(spec: Spec, attempt: int, error: BaseException, worker: str, now_ms: int | None = None) -> Failure:
    """What follows from an error in run number ``attempt``: another run after a delay, or the end."""
    final = attempt >= spec.attempts or (
        error.final if isinstance(error, Reported) else isinstance(error, Discard | InvalidPayload)
    )
    delay = None
    if not final:
        asked = error.delay if isinstance(error, Retry | Reported) else None
        if asked is None:
            delay = delay_ms(spec.backoff, attempt)
        else:
            delay = max(0, round((asked.total_seconds() if isinstance(asked, timedelta) else asked) * 1000))
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ of a user's exception must not lose the job
        text = f"<{type(error).__name__} whose str() fails>"
    name, message = type_name(error), cut(redact(text), MESSAGE_MAX)
    # lone surrogates have no UTF-8
    message = message.encode(errors="backslashreplace").decode()
    trace = format_traceback(error)
    record = AttemptError(
        attempt=attempt,
        at=now_ms if now_ms is not None else time.time_ns() // 1_000_000,
        type=name,
        message=message,
        traceback=trace.encode(errors="backslashreplace").decode() if trace else None,
        worker=worker,
    )
    return Failure(_encode(record), delay, name, message)
