"""How a run ended, as data, and what follows from it. The only place where retries are decided."""

from __future__ import annotations

import re
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.backoff import delay_ms
from jobq.engine.model.job import DELAY_MAX_MS, AttemptError
from jobq.engine.model.options import to_ms
from jobq.errors import Discard, InvalidJob, Retry
from jobq.redact import excerpt

if TYPE_CHECKING:
    from jobq.engine.model.job import Spec

MESSAGE_MAX: Final = 2_000
TRACEBACK_MAX: Final = 8_000
"""Characters kept of an attempt's traceback: half from its start, half from its end."""

_OURS = re.compile(r"[/\\](jobq[/\\]engine|concurrent[/\\]futures|asyncio)[/\\]")

_encode = msgspec.json.Encoder().encode


class InvalidPayload(Exception):
    """The payload does not fit the handler's signature (any more); running it again cannot help."""


class InvalidResult(Exception):
    """The handler returned something without a JSON form; its work is done, and running it again cannot help."""


class Timeout(Exception):
    """The run took longer than the job's timeout."""


class LeaseExpired(Exception):
    """The worker stopped renewing: it was killed, lost its network, or hung."""


class ProcessCrashed(Exception):
    """The child process that ran the handler died."""


class Reported(Exception):
    """An error that a child process reported: its own type, message and traceback."""

    def __init__(self, type_: str, message: str, trace: str | None, *, final: bool, delay: int | None) -> None:
        self.type = type_
        self.trace = trace
        self.final = final
        self.delay = delay
        super().__init__(message)


FINAL: Final = (Discard, InvalidPayload, InvalidResult)
"""No other attempt follows from these."""


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt. ``delay`` ms until the next one; None: there is none."""

    record: bytes
    delay: int | None
    type: str
    message: str


def encode_result(value: Any) -> bytes | msgspec.Raw:
    """A handler's result as JSON.

    :raises InvalidResult: it has no JSON form.
    """
    try:
        return value if isinstance(value, msgspec.Raw) else _encode(value)
    except Exception as error:  # noqa: BLE001 - values can do what they like while they are encoded
        raise InvalidResult(f"the handler's result has no JSON form: {error}") from None


def asked_delay(error: BaseException) -> int | None:
    """The delay before the next attempt that a handler asked for, ms; None: it did not, or it is no time."""
    if not isinstance(error, Retry) or error.delay is None:
        return None
    try:
        return min(max(0, to_ms(error.delay)), DELAY_MAX_MS)
    except InvalidJob:
        return None


def describe(error: BaseException) -> str:
    """An error's message, bounded, without passwords in URLs."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ of a user's exception must not lose the job
        text = f"<{type(error).__name__} whose str() fails>"
    # lone surrogates have no UTF-8
    return excerpt(text, MESSAGE_MAX).encode(errors="backslashreplace").decode()


def format_traceback(error: BaseException) -> str | None:
    """The handler's part of the traceback, bounded, without passwords in URLs."""
    if isinstance(error, Reported):
        return error.trace
    frames = error.__traceback__
    # the first frames are the engine's own, and what stands between it and the handler
    while frames is not None and _OURS.search(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    if frames is None and error.__cause__ is None:
        return None
    lines = traceback.format_exception(type(error), error, frames)
    return excerpt("".join(lines), TRACEBACK_MAX)


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
    final = attempt >= spec.attempts or (error.final if isinstance(error, Reported) else isinstance(error, FINAL))
    delay = None
    if not final:
        delay = error.delay if isinstance(error, Reported) else asked_delay(error)
        if delay is None:
            delay = delay_ms(spec.backoff, attempt)
    name, message = type_name(error), describe(error)
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
