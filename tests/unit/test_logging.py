"""The log of jobq's own processes: one stream, no passwords, no local variables."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from jobq.engine.log import get_logger, indented
from jobq.logging import configure
from jobq.settings import Settings


@pytest.fixture(autouse=True)
def as_it_was():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_the_engine_structlog_and_logging_write_the_same_json(capsys):
    configure(Settings(log_format="json"))
    get_logger("jobq.engine.x").warning("one", n=1)
    structlog.get_logger().warning("one", n=1)
    logging.getLogger("someone.else").warning("one", extra={"n": 1})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert (line["event"], line["n"], line["level"]) == ("one", 1, "warning")
        assert line["timestamp"].endswith("Z")


def test_context_of_the_handler_is_in_each_line(capsys):
    configure(Settings(log_format="json"))
    with structlog.contextvars.bound_contextvars(job="j1"):
        logging.getLogger("handler").info("plain")
        structlog.get_logger().info("bound")
    assert [json.loads(line)["job"] for line in capsys.readouterr().err.splitlines()] == ["j1", "j1"]


def test_the_level_holds_for_all(capsys):
    configure(Settings(log_format="json", log_level="error"))
    get_logger("jobq.engine.x").warning("no")
    structlog.get_logger().warning("no")
    logging.getLogger("x").warning("no")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_passwords_and_locals_stay_out(capsys, log_format):
    configure(Settings(log_format=log_format))
    payload = "local-secret"
    try:
        raise ValueError(f"no route to redis://user:hunter2@host ({len(payload)})")
    except ValueError:
        logging.getLogger("x").exception("failed at %s", "redis://:hunter2@host")
        structlog.get_logger().exception("failed", url="valkey://user:hunter2@host")
    written = capsys.readouterr().err
    assert "ValueError" in written
    assert "user:***@host" in written
    assert "hunter2" not in written
    assert "local-secret" not in written


FORGED = "line\n12:00:00.000000 [error    ] forged \x1b[31m\x9b2J\u202e\r\ud800"


def test_client_text_in_the_log_cannot_control_the_terminal_or_forge_a_line(capsys):
    configure(Settings(log_format="console"))
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        logging.getLogger("x").exception(FORGED, extra={"field": FORGED, "listed": [FORGED], "error": error})
        structlog.get_logger().error(FORGED, **{"field": FORGED, FORGED: 1})
        get_logger("y").warning(FORGED, stack_info=True)
    written = capsys.readouterr().err
    assert written.replace("\n", "").isprintable()
    assert "\\x1b[31m" in written
    starts = [line for line in written.splitlines() if not line.startswith("    ") and line.strip("= ")]
    assert len(starts) == 3, "one line for each event; only tracebacks have more, and those are indented"
    assert all(" line\\n12:00:00" in line for line in starts)


def test_the_traceback_in_a_message_keeps_its_lines_on_a_terminal(capsys):
    configure(Settings(log_format="console"))
    get_logger("y").error(f"Job send 1 failed: no\n{indented(f'Traceback:{chr(10)}  in send{FORGED}')}", attempt=1)
    lines = capsys.readouterr().err.splitlines()
    assert "Job send 1 failed: no" in lines[0]
    assert lines[0].endswith("attempt=1")
    assert lines[1:3] == ["    Traceback:", "      in sendline"]
    assert [line for line in lines[1:] if not line.startswith("    ")] == []


def test_values_other_than_text_are_redacted_too(capsys):
    configure(Settings(log_format="json"))
    url = "redis://u:hunter2@h"
    structlog.get_logger().error("failed", listed=[url], mapped={url: url}, error=ValueError(url), number=1, none=None)
    written = capsys.readouterr().err
    assert "hunter2" not in written
    line = json.loads(written)
    assert (line["listed"], line["number"], line["none"]) == (["redis://u:***@h"], 1, None)


class Gone:
    """A stderr whose reader is gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return False


def test_a_log_without_a_reader_does_not_stop_the_process(monkeypatch):
    monkeypatch.setattr("sys.stderr", Gone())
    configure(Settings(log_format="json"))
    structlog.get_logger().error("one")
    logging.getLogger("x").error("two")
    get_logger("y").error("three")
