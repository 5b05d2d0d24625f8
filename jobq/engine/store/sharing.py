"""The scripts that balance what the partitions of a queue may use of the queue's own rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.counting import Counting

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sharing(Counting):
    """The part of a store that has a share of the queue's own rule."""

    def balance(self, worker: str, ms: int) -> Call[int]:
        """Take the right to balance shares for ``ms``, or extend it. Returns a fence, 0 if another worker has it."""
        return Call("balance", [self.now, worker, ms], int)

    def share(self, fence: int, share: str = "", whole: str = "", tokens: Sequence[float] = ()) -> Call[list[Any]]:
        """Read what this partition uses of the queue's rule, and set how much it may use (see share.lua)."""
        return Call("share", [self.now, fence, share, whole, *(f"{number:.6f}" for number in tokens)], read_as_is)
