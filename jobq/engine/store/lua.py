"""Finds the scripts in the wheel or the checkout, reads them once, and parses their headers."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_KEYS = re.compile(r"^-- KEYS (.+)$", re.MULTILINE)


class Script(msgspec.Struct, frozen=True):
    """One script. ``keys`` are the columns that it declares, in order. The first ``few`` are before the semicolon."""

    name: str
    source: bytes
    sha: str
    keys: tuple[str, ...]
    few: int

    def columns(self, *, short: bool) -> tuple[str, ...]:
        """The columns that a call sends: all of them, or for a short call those before the semicolon."""
        return self.keys[: self.few] if short else self.keys


def folder() -> Traversable:
    """Where the scripts are: inside the wheel as ``jobq/_lua``, in a checkout as ``scripts/lua``."""
    installed = files("jobq").joinpath("_lua")
    return installed if installed.is_dir() else Path(__file__).parents[3] / "scripts" / "lua"


def parse(name: str, source: bytes) -> Script:
    """Read a script's header.

    :raises ValueError: there is no KEYS line.
    """
    found = _KEYS.search(source.decode())
    if not found:
        raise ValueError(f"{name}.lua has no '-- KEYS' line")
    # EVALSHA identifies a script by its SHA-1. This is not a security feature.
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    few, *more = (half.split() for half in found[1].split(";"))
    return Script(name=name, source=source, sha=sha, keys=tuple(sum(more, few)), few=len(few))


@cache
def scripts() -> dict[str, Script]:
    """All scripts by name."""
    return {
        entry.name.removesuffix(".lua"): parse(entry.name.removesuffix(".lua"), entry.read_bytes())
        for entry in folder().iterdir()
        if entry.name.endswith(".lua")
    }
