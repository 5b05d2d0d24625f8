"""Migrations from one layout to the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobq.engine.store.sender import Sender

Migration = Callable[["Sender"], Awaitable[bool]]
"""Migrates one page and returns whether there is more. It must be repeatable, because a process may die after any page.
Programs of the earlier release go on meanwhile, and afterwards until they are restarted. So the scripts of both layouts
must understand what a page writes."""

MIGRATIONS: Final[dict[int, Migration]] = {}
"""Migrations by the layout that they start from."""
