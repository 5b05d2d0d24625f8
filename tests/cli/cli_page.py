"""Writes the reference in docs/cli.md from the parser: ``python -m tests.cli.cli_page``. A test compares the two."""

# ruff: noqa: SLF001 - argparse has no public way to read a parser
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobq.cli.parser import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
START = "<!-- reference: made by python -m tests.cli.cli_page -->\n"
SHARED = "settings"
"""The group of options that nearly all commands have. It is described only once."""


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All commands below a parser, in the order of ``--help``."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                below = list(commands(command))
                yield from below or [command]


def usage(command: argparse.ArgumentParser) -> str:
    """The positional arguments of a command."""
    words = [
        f"[{action.metavar}]" if action.nargs in ("?", "*") else str(action.metavar) for action in _positional(command)
    ]
    return " ".join([command.prog, *words])


def reference() -> str:
    """The section of every command."""
    parts: list[str] = []
    shared: dict[str, str] = {}
    for command in commands(build_parser()):
        lines = [f"### {usage(command)}", "", str(command.description), ""]
        for group in command._action_groups:
            rows = [
                _row(action) for action in group._group_actions if action.help and "-h" not in action.option_strings
            ]
            if group.title == SHARED:
                shared |= dict(rows)
            else:
                lines += [f"- {name}: {text}" for name, text in rows]
        parts.append("\n".join(lines).rstrip() + "\n")
    lines = ["### Settings of every command", "", *(f"- {name}: {text}" for name, text in shared.items())]
    return "\n".join([*parts, "\n".join(lines) + "\n"])


def _positional(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if not action.option_strings]


def _row(action: argparse.Action) -> tuple[str, str]:
    value: Any = "|".join(action.choices) if action.choices else action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`", str(action.help)
    takes = "" if action.nargs == 0 else f" {value}"
    return f"`{', '.join(action.option_strings)}{takes}`", str(action.help)


if __name__ == "__main__":
    head = PAGE.read_text().partition(START)[0]
    PAGE.write_text(f"{head}{START}\n{reference()}")
