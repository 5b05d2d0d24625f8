"""Log lines of isolated handlers: the child process sends them, and the worker writes them.

Records of ``logging`` and events of structlog are sent with the context variables of the code that logged them. So
the worker's own handlers, levels and formats apply, and a line has its job's id. A module that configures
``logging`` or structlog when it is imported keeps its own configuration in the child.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import structlog
from structlog.contextvars import bind_contextvars, get_contextvars

from jobq.engine.log import RESERVED
from jobq.redact import excerpt

if TYPE_CHECKING:
    from collections.abc import MutableMapping

TEXT_MAX: Final = 8192
"""Characters of a line, and of its traceback."""
LINE_MAX: Final = 65_536
"""Bytes of a line with all its fields. If it is longer, only the text is sent."""

_encoder = msgspec.json.Encoder(enc_hook=repr)


class Sender(Protocol):
    """The child's end of the connection."""

    def send_line(self, kind: Literal["record", "event"], data: bytes) -> bool:
        """Send a line. Returns False if it is not sent, because no job runs or this process is a forked copy."""
        ...


class Line(msgspec.Struct):
    """A record of ``logging``, or an event of structlog. ``bound`` are structlog's context variables."""

    level: int
    text: str
    bound: dict[str, Any]
    fields: dict[str, Any]
    logger: str = ""
    trace: str | None = None
    created: float = 0.0
    path: str = ""
    line: int = 0
    function: str | None = None
    thread: str | None = None
    process: int = 0


_decode = msgspec.json.Decoder(Line).decode


def _encoded(line: Line) -> bytes:
    try:
        data = _encoder.encode(line)
    except Exception:  # noqa: BLE001 - a field may be any object, and the text matters more
        data = b""
    if not data or len(data) > LINE_MAX:
        line.fields = {}
        line.bound = {name: str(value)[:200] for name, value in line.bound.items() if name in _OURS}
        data = _encoder.encode(line)
    return data


_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()} | {"exception": logging.ERROR}
"""structlog's methods."""
_OURS: Final = ("queue", "job_id", "attempt")


def _clean(text: str) -> str:
    """The text cut, and without lone surrogates, which cannot be encoded as UTF-8."""
    return excerpt(text.encode(errors="backslashreplace").decode(), TEXT_MAX)


class _SendRecords(logging.Handler):
    """The root logger's handler in a child."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        try:
            trace = None
            if record.exc_info:
                trace = _clean(logging.Formatter().formatException(record.exc_info))
            line = Line(
                level=record.levelno,
                text=_clean(record.getMessage()),
                bound=get_contextvars(),
                fields={name: value for name, value in vars(record).items() if name not in RESERVED},
                logger=record.name,
                trace=trace,
                created=record.created,
                path=record.pathname,
                line=record.lineno,
                function=record.funcName,
                thread=record.threadName,
                process=record.process or 0,
            )
            if not self._sender.send_line("record", _encoded(line)):
                _write(line)
        except Exception:  # noqa: BLE001 - like every logging handler: an error in it must not stop the program
            self.handleError(record)


def _write(line: Line) -> None:
    """Write a line that the worker does not read to this process's own stderr."""
    bound = "".join(f" {name}={line.bound[name]}" for name in _OURS if name in line.bound)
    trace = f"\n{line.trace}" if line.trace else ""
    print(
        f"{logging.getLevelName(line.level)} {line.logger} {line.text} pid={os.getpid()}{bound}{trace}", file=sys.stderr
    )


def install(sender: Sender) -> None:
    """Send what this process logs to the worker."""
    logging.root.addHandler(_SendRecords(sender))

    def send(_: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        trace = event.pop("exception", None)
        line = Line(
            level=_LEVELS.get(method, logging.INFO),
            text=_clean(str(event.pop("event", ""))),
            bound=get_contextvars(),
            fields=dict(event),
            trace=None if trace is None else _clean(str(trace)),
        )
        if not sender.send_line("event", _encoded(line)):
            _write(line)
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.StackInfoRenderer(), structlog.processors.format_exc_info, send]
    )


def levels() -> dict[str, int]:
    """The levels of this process's loggers, for its children."""
    found = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            found[name] = logger.level
    return found


def set_levels(given: dict[str, int]) -> None:
    """Set the worker's levels, so that no line is sent that the worker would drop."""
    for name, level in given.items():
        logger = logging.getLogger(name) if name else logging.root
        if logger.level != level:
            logger.setLevel(level)


def write_received(kind: Literal["record", "event"], data: bytes) -> None:
    """Write a child's line as if the worker's own process had logged it. ``data`` comes from ``send_line``."""
    line = _decode(data)
    # Use an empty context, because the worker may have bound variables of another run.
    contextvars.Context().run(_record if kind == "record" else _event, line)


def _record(line: Line) -> None:
    logger = logging.getLogger(line.logger)
    if not logger.isEnabledFor(line.level):
        return
    bind_contextvars(**line.bound)
    fields = dict(line.fields)
    if line.trace:
        # Formatters of logging show exc_text, those of structlog "exception".
        fields |= {"exc_text": line.trace, "exception": line.trace}
    fields |= {
        "name": line.logger,
        "levelno": line.level,
        "levelname": logging.getLevelName(line.level),
        "msg": line.text,
        "created": line.created,
        "msecs": line.created % 1 * 1000,
        "pathname": line.path,
        "filename": os.path.basename(line.path),  # noqa: PTH119 - it takes a tenth of the time
        "lineno": line.line,
        "funcName": line.function,
        "threadName": line.thread,
        "process": line.process,
    }
    logger.handle(logging.makeLogRecord(fields))


def _event(line: Line) -> None:
    bind_contextvars(**line.bound)
    fields = line.fields if line.trace is None else line.fields | {"exception": line.trace}
    structlog.get_logger().log(line.level, line.text, **fields)
