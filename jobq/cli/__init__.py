"""The command line: ``parser`` says what there is, each other module runs one group of commands."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from jobq.cli.parser import build_parser
from jobq.errors import JobqError, SettingsError, TargetError
from jobq.settings import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code: 0 done, 1 failed (one line on stderr says why), 2 used wrongly."""
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except (TargetError, SettingsError) as error:
        return _complain(error, USAGE)
    except JobqError as error:
        return _complain(error, ERROR)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output left, as `| head` does; Python would complain once more while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    module, _, function = args.run.partition(":")
    code = getattr(importlib.import_module(f"jobq.cli.{module}"), function)(args, settings) or OK
    sys.stdout.flush()  # a reader that left is noticed here, not while Python exits
    return code


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings, with the flags put into the environment first: targets and child processes see them too.

    :raises SettingsError: a flag or variable cannot be used.
    """
    for field in Settings.__struct_fields__:
        value = getattr(args, field, None)
        if value is not None:
            os.environ[f"JOBQ_{field.upper()}"] = str(value)
    return Settings.from_env()


def _complain(error: JobqError, code: int) -> int:
    message = " ".join(str(error).split())
    print(f"jobq: {message}", file=sys.stderr)
    return code
