"""The scripts about what was counted of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.webhooks import WebhookRows

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLD_PAGE: Final = 10
"""Types whose counts one call of ``fold`` adds to their history."""
DEMAND_LINES: Final = 500
"""Lines of held jobs that ``demand`` looks at."""
SAMPLED: Final = 300
SAMPLED_BYTES: Final = 1 << 18
"""Jobs whose types one reading of a state looks at, and bytes of their specs."""


class Counting(WebhookRows):
    """The part of a store that reads what was counted, and keeps its history."""

    def fold(self, page: int = FOLD_PAGE) -> Call[int]:
        """Add what was counted in five minutes that are over to the history of at most ``page`` types. Returns how
        many."""
        return Call("fold", [self.now, page], int)

    def numbers(self, types: Sequence[str]) -> Call[list[Any]]:
        """What was counted of these types, or without any the list of the types, as numbers.lua returns it."""
        return Call("numbers", [self.now, *types], read_as_is)

    def demand(self, lines: int = DEMAND_LINES) -> Call[list[Any]]:
        """How many jobs could run now, as demand.lua returns it."""
        return Call("demand", [self.now, lines], read_as_is)

    def sample(self, state: str, jobs: int = SAMPLED, size: int = SAMPLED_BYTES) -> Call[list[Any]]:
        """The size of a state, and the types of some of its jobs (see sample.lua)."""
        return Call("sample", [jobs, size], read_as_is, keys=(self.keys[state], self.keys["jobs"]))
