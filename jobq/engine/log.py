"""Loggers of the engine: structlog on top of the standard library's logging, so that a service's own setup decides.

Each transition is an event at debug, each failure one at warning. Fields are passed as ``extra``. structlog's
``ProcessorFormatter`` with ``ExtraAdder`` (jobq.logging) and every JSON formatter read them.
"""

from __future__ import annotations

import functools
import logging
import textwrap
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping


# logging finds the logger under a lock, so keep it.
_standard = functools.cache(logging.getLogger)
RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _to_extra(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Fields as ``extra``. A name that is also an attribute of a LogRecord would raise during a run, so it gets a
    '_'."""
    message = event.pop("event")
    out: dict[str, Any] = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return out | {
        "msg": message,
        "extra": {f"{name}_" if name in RESERVED else name: value for name, value in event.items()},
    }


def get_logger(name: str) -> Any:
    """A structlog logger that writes to ``logging.getLogger(name)``."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _to_extra,
        ],
    )


def indented(lines: str) -> str:
    """A traceback or a stack as a part of a message, so that every format shows it. None of its lines can look like
    a line of the log."""
    return textwrap.indent(lines.rstrip(), "    ")


def debugging(name: str) -> bool:
    """Whether debug events are written. It is called once per batch and not once per job."""
    return _standard(name).isEnabledFor(logging.DEBUG)
