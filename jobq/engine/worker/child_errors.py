"""Sends the exception of an isolated handler from the child process to the worker.

Middleware sees the handler's own exception if it can be recreated in the worker: its class is found there by name,
and its arguments and attributes are plain values. Otherwise it sees a ``RemoteError``.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any, cast

import msgspec

from jobq.engine.model.outcome import RemoteTraceback, facts, kinds
from jobq.engine.worker.child_messages import RaisedError
from jobq.errors import RateLimited, RemoteError, Retry, Snooze

STATE_MAX = 64_000
"""Bytes of an exception's arguments and attributes. They are sent in addition to the message, which is bounded too."""
TUPLE = "\0tuple"
"""The only key of a dict that stands for a tuple."""
MAIN = "__jobq_main__"
"""The name under which a child loads the file that the worker has as ``__main__``."""

_encode = msgspec.msgpack.Encoder().encode


def pack(error: BaseException) -> RaisedError:
    """Describe an exception so that it can be sent. Never raises."""
    kind = type(error)
    told = facts(error)
    args = state = None
    # Only an Exception is recreated. A SystemExit or CancelledError would end or cancel the worker.
    if issubclass(kind, Exception) and not issubclass(kind, StopIteration | StopAsyncIteration):
        args, state = _parts(error)
    return RaisedError(
        module=_in_worker(str(kind.__module__)),
        qualname=kind.__qualname__,
        facts=msgspec.structs.replace(
            told,
            type=_in_worker(told.type),
            kinds=tuple(tuple(_in_worker(name) for name in names) for names in kinds(error)),
        ),
        args=args,
        state=state,
    )


def _in_worker(name: str) -> str:
    return f"__main__{name.removeprefix(MAIN)}" if name.split(".", maxsplit=1)[0] == MAIN else name


def _parts(error: BaseException) -> tuple[bytes | None, bytes | None]:
    """The encoded arguments and attributes from which the exception can be recreated."""
    try:
        made_by, args, *rest = cast("tuple[Any, ...]", error.__reduce__())
        if made_by is not type(error) or len(rest) > 1:
            return None, None
        attributes: dict[str, Any] = dict(rest[0] or {}) if rest else {}
        if issubclass(made_by, Retry | Snooze | RateLimited) and isinstance(attributes.get("delay"), timedelta):
            attributes["delay"] = attributes["delay"].total_seconds()
        attributes.pop("__notes__", None)  # The traceback shows notes.
        return _plain(list(args)), _plain(attributes)
    except BaseException:  # noqa: BLE001 - a user's class may have a __reduce__ of any kind
        return None, None


def _plain(value: Any) -> bytes | None:
    """The encoded value. None if decoding would give another value, or if it is too large."""
    try:
        encoded = _encode(_marked(value))
        if len(encoded) <= STATE_MAX and _unmarked(msgspec.msgpack.decode(encoded)) == value:
            return encoded
    except BaseException:  # noqa: BLE001, S110 - any object may raise while it is encoded or compared
        pass
    return None


def _marked(value: Any) -> Any:
    """The value with its tuples marked: msgpack would make lists of them."""
    if isinstance(value, tuple):
        return {TUPLE: [_marked(one) for one in cast("tuple[Any, ...]", value)]}
    if isinstance(value, list):
        return [_marked(one) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _marked(one) for name, one in cast("dict[Any, Any]", value).items()}
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(one) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        inside = {name: _unmarked(one) for name, one in cast("dict[Any, Any]", value).items()}
        return tuple(inside[TUPLE]) if list(inside) == [TUPLE] else inside
    return value


def rebuild(raised: RaisedError) -> Exception:
    """The handler's exception, or a ``RemoteError`` that describes it."""
    error, told = _rebuilt(raised), raised.facts
    if error is None:
        error = RemoteError(
            told.type, told.message, told.trace,
            final=told.final, delay=told.delay, snooze=told.snooze, rate_limit=told.rate_limit,
        )  # fmt: skip
    error.__cause__ = RemoteTraceback(told)
    return error


def _rebuilt(raised: RaisedError) -> Exception | None:
    if raised.args is None or raised.state is None:
        return None
    # Do not import modules here. An import may block the event loop for seconds.
    found: Any = sys.modules.get(raised.module)
    for name in raised.qualname.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    kind = found
    try:
        args: list[Any] = _unmarked(msgspec.msgpack.decode(raised.args))
        error = kind.__new__(kind, *args)
        # The __init__ of a user's class may have other arguments than it passes to its base class, as pickle's users
        # know. So only the built-in base class gets the arguments. Attributes are restored below.
        builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        builtin.__init__(error, *args)
        vars(error).update(_unmarked(msgspec.msgpack.decode(raised.state)))
    except Exception:  # noqa: BLE001 - a user's class may do anything; the RemoteError describes the error as well
        return None
    return error if facts(error).message == raised.facts.message else None
