"""Logging of jobq's own processes: structlog and the standard library's logging are written as one stream.

Only the command line calls ``configure``. A service that embeds jobq keeps its own configuration.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from jobq.printable import printable, printable_lines
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from jobq.settings import Settings

_OF_STRUCTLOG = ("_record", "_from_structlog")
_INDENT = "    "
_TRACES = ("exception", "stack")
"""Fields that may have several lines."""


class _Lenient:
    """A stream whose reader may go away. A log line that nobody can read must not stop a worker."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _redacted(value: Any) -> Any:
    """The value without passwords. Other objects are replaced by their redacted repr, which is what the log shows."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(key)): _redacted(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in cast("list[Any]", value)]
    return redact(repr(value))


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value if name in _OF_STRUCTLOG else _redacted(value) for name, value in event.items()}


def _make_printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make an event printable on one line, even if it quotes several. Only tracebacks keep their lines, indented."""
    shown: dict[str, Any] = {}
    stack: list[str] = []
    for name, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        if name == "event":
            first, *others = text.split(f"\n{_INDENT}")
            shown[name] = printable(first)
            stack = [_INDENT + printable(line) for line in others] + stack
        elif name == "stack":
            stack += printable_lines(text, _INDENT)
        elif name in _TRACES:
            shown[name] = "\n".join(printable_lines(text, _INDENT))
        else:
            shown[printable(name)] = printable(text)
    if stack:
        shown["stack"] = "\n".join(stack)  # This is written after the fields.
    return shown


def configure(settings: Settings) -> None:
    """Write events from ``settings.log_level`` up to stderr: as text on a terminal, as JSON elsewhere."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    stream = cast("TextIO", _Lenient(sys.stderr))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,  # Adds the queue, job id and attempt while a handler runs.
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
        structlog.processors.StackInfoRenderer(),
        # Format tracebacks before the redaction. Those of rich would show the values of local variables.
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    written: list[Any] = [structlog.processors.JSONRenderer()]
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=30
        )
        written = [_make_printable, renderer]
    structlog.configure(
        processors=[*shared, *written],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # These loggers write a line for each request and each event loop.
    logging.getLogger("aiohttp.access").setLevel(max(level, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
