"""The pieces of the command line's parser: commands in groups, and the settings that all commands have."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from jobq.cli import render

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def __init__(self, **given: Any) -> None:
        # A new flag could change the meaning of an abbreviated one.
        super().__init__(allow_abbrev=False, **given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse unknown arguments here, so that the error names the command that they were given to."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the error and where to read more, and exit with 2."""
        if message.startswith("unrecognized arguments: --queue"):
            message += "; commands about whole queues take the name alone, as in 'jobq stats NAME'"
        argument, missing, _ = message.partition(": expected one argument")
        if missing:
            # A value such as -5m looks like an option.
            option = argument.rpartition(" ")[2].rpartition("/")[2]
            message = f"{argument}: a value is missing; one that begins with '-' is written {option}=VALUE"
        render.complain(f"{message}; see '{self.prog} --help'")
        self.exit(2)


class Menu:
    """The commands, in the groups in which ``--help`` lists them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        # Otherwise argparse joins the lines of the commands to one paragraph.
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.usage = f"{parser.prog} COMMAND ..."
        self._subparsers: Subparsers = parser.add_subparsers(
            prog=parser.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS
        )
        self._intro = parser.description or ""
        self._lines: list[str] = []

    def group(self, title: str) -> None:
        """Begin a group."""
        self._lines += ["", f"{title}:"]

    def add(self, name: str, run: str, summary: str) -> argparse.ArgumentParser:
        """Add a command. ``run``: "module:function" in this package."""
        if not self._lines:
            self.group("Commands")
        self._lines.append(f"  {name:<10} {summary}")
        self._parser.description = "\n".join([self._intro, *self._lines])
        parser = self._subparsers.add_parser(name, description=summary[0].upper() + summary[1:] + ".")
        parser.set_defaults(run=run, json=False)
        return parser


def command(
    menu: Menu, name: str, run: str, summary: str, *, shown: bool = False, queue: bool = False
) -> argparse.ArgumentParser:
    """Add a command with the settings that all commands have. ``shown``: it prints data, and takes --json."""
    parser = menu.add(name, run, summary)
    if shown:
        parser.add_argument("--json", action="store_true", help="print JSON, one document a line")
    if queue:
        parser.add_argument("--queue", metavar="QUEUE", help='the queue (default: the only one, else "default")')
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--redis", dest="redis_url", metavar="URL", help="redis://, unix://, redis+cluster:// and others"
    )
    group.add_argument("--data-dir", metavar="PATH", help="where the embedded server keeps its data")
    group.add_argument("--prefix", help="start of all keys in Redis (default: jobq)")
    group.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")
    group.add_argument("--log-format", choices=["auto", "console", "json"], help="auto: console on a terminal")
    return parser
