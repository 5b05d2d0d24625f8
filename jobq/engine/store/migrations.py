"""The ways from one layout to the next one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobq.engine.store.store import Store

Migration = Callable[["Store"], Awaitable[bool]]
"""One page of the way: whether there is more. It may be repeated at any point, since a process may die behind any page.
The workers of the older version must have stopped."""

MIGRATIONS: Final[dict[int, Migration]] = {}
"""By the layout that they start from."""
