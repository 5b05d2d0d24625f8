"""The command line: ``parser`` describes the commands, and each other module runs a group of them."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.parser import build_parser
from jobq.errors import JobqError, SettingsError, TargetError
from jobq.settings import LIFELINE, Settings, unknown_variables

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code: 0 done, 1 failed (with one line on stderr), 2 wrong usage."""
    _write_what_cannot_be_encoded()
    words = sys.argv[1:] if argv is None else argv
    try:
        _must_be_text(words)
        return _run(build_parser().parse_args(words))
    except (TargetError, SettingsError) as error:
        return _complain(error, USAGE)
    except JobqError as error:
        return _complain(error, ERROR)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return OK  # The reader of our output is gone, as with `| head`.
    finally:
        _let_go_of_lost_readers()


def _must_be_text(words: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8. They arrive as lone surrogates, which Redis and JSON cannot store."""
    for number, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise SettingsError(f"argument {number} is not UTF-8; encode it as UTF-8") from None


def _run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    module, _, function = args.run.partition(":")
    return getattr(importlib.import_module(f"jobq.cli.{module}"), function)(args, settings) or OK


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings. Flags are written to the environment first, so that targets and child processes use them too.

    :raises SettingsError: a flag or variable cannot be used.
    """
    for field in Settings.__struct_fields__:
        value = getattr(args, field, None)
        if value is not None:
            os.environ[f"JOBQ_{field.upper()}"] = str(value)
    if LIFELINE not in os.environ:  # The supervisor has already warned about unknown variables.
        for sentence in unknown_variables(os.environ):
            render.complain(sentence)
    return Settings.from_env()


def _complain(error: JobqError, code: int) -> int:
    about = "" if type(error) is JobqError else f" ({error.page()})"
    render.complain(f"{error}{about}")
    return code


def _write_what_cannot_be_encoded() -> None:
    """Escape characters that the terminal cannot show. With LANG=C an é in a payload would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_lost_readers() -> None:
    """Redirect a stream whose reader is gone. Python flushes it once more at exit and would print an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
