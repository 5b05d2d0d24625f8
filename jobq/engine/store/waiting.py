"""What the trackers of a cluster need of a store. The store imports them, so they know only this interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobq.engine.store.link import Connection
    from jobq.engine.store.packing import Argument


class Waiting(Protocol):
    """The interface of a store that waits for its wake token."""

    @property
    def keys(self) -> Mapping[str, bytes]:
        """Column name -> full key."""
        ...

    @property
    def node(self) -> Connection:
        """The connection to the node that has the queue, as far as is known."""
        ...

    async def command(self, *words: Argument, patience: float = 0.0) -> Any:
        """Send a plain command."""
        ...
