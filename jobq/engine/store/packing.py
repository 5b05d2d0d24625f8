"""How a command is packed for the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable

Argument = bytes | str | int | float
pack: Callable[[tuple[Argument, ...]], bytes] = cast("Any", hiredis.pack_command)
