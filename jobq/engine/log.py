"""Loggers of the engine: structlog on top of the standard library's, so that a service's own logging setup decides.

One event per transition at debug, one per failure at warning. Fields travel as ``extra``, which structlog's
``ProcessorFormatter`` with ``ExtraAdder`` (jobq.logging) and every JSON formatter pick up.
"""

from __future__ import annotations

import functools
import logging
import textwrap
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping


# logging looks it up under a lock
_standard = functools.cache(logging.getLogger)
RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _to_extra(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Fields as ``extra``. A name that a LogRecord has itself would raise in the middle of a run: it gets a '_'."""
    message = event.pop("event")
    out: dict[str, Any] = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return out | {
        "msg": message,
        "extra": {f"{name}_" if name in RESERVED else name: value for name, value in event.items()},
    }


def get_logger(name: str) -> Any:
    """A structlog logger that ends in ``logging.getLogger(name)``."""
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
    """A traceback or a stack as a part of a message, so that it is seen in every format. No line of it can look like a
    line of the log."""
    return textwrap.indent(lines.rstrip(), "    ")


def debugging(name: str) -> bool:
    """Whether debug events would be seen: asked once per batch, not once per job."""
    return _standard(name).isEnabledFor(logging.DEBUG)
