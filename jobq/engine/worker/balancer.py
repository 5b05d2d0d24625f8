"""Balances what the partitions of a queue may use of the queue's own rule. One worker at a time does it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from jobq.engine.log import get_logger
from jobq.engine.model.limits import parse_rule
from jobq.engine.model.shares import BLOCKED, Usage, bursts_of, goals, lowered, raised, read_usage
from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.model.limits import Rule
    from jobq.engine.store import Store

log = get_logger("jobq.worker")

SOON: Final = 0.25
"""Seconds until the next look, while jobs wait for a larger share of their partition."""
LATER: Final = 1.0
"""Seconds until the next look otherwise."""
RARELY: Final = 5.0
"""Seconds until a queue of one partition may have others."""
RIGHT_MS: Final = 5_000
"""If the worker that balances dies, another one takes over after this time. Until then all shares stay as they are."""


class Partitioned(Protocol):
    """The part of a queue that is needed here."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def store(self) -> Store:
        """Its store, with all its partitions."""
        ...


class Balancer:
    """The shares of one queue."""

    def __init__(self, queue: Partitioned, worker: str) -> None:
        self._queue = queue
        self._worker = worker
        self._turn = 0

    async def run(self) -> None:
        """Balance until cancelled. A queue of one partition, or without limits, costs nothing."""
        while True:
            parts = self._queue.store.parts
            # It may get partitions, or limits, while this worker runs.
            wait = SOON if len(parts) > 1 else RARELY
            if len(parts) > 1 and any(part.limited for part in parts):
                try:
                    wait = SOON if await self.balance() else LATER
                except StoreError as error:
                    log.warning(
                        f"The shares of queue {self._queue.name} were not balanced, and stay as they are: {error}",
                        queue=self._queue.name, error=str(error),
                    )  # fmt: skip
            await asyncio.sleep(wait)

    async def balance(self) -> bool:
        """Balance once, unless another worker has the right to. Returns whether jobs wait for larger shares.

        :raises StoreError: a partition does not answer. Shares are lowered before others are raised, so they never
            exceed the rule, wherever this ends.
        """
        parts = self._queue.store.parts
        fence = await parts[0].do(parts[0].balance(self._worker, RIGHT_MS))
        if not fence:
            return False
        # From here on an earlier worker is refused in every partition.
        replies = await asyncio.gather(*(part.do(part.share(fence)) for part in parts))
        if not all(replies):
            return False
        whole = bytes(replies[0][4]).decode(errors="replace")
        rule = parse_rule(whole)
        if rule is None:
            return False
        usages = [read_usage(reply, whole) for reply in replies]
        # Nobody has had tokens of a new rule yet.
        tokens = [float(band.burst) if all(one.share is None for one in usages) else 0.0 for band in rule.rate]
        wanted = goals(rule, usages, self._turn)
        self._turn += 1
        low = [lowered(rule, one.share, goal) for one, goal in zip(usages, wanted, strict=True)]
        usages = await self._set(fence, whole, usages, low, tokens, None)
        high = raised(rule, usages, wanted)
        grants = [_grant(rule, share, one, tokens) for share, one in zip(high, usages, strict=True)]
        usages = await self._set(fence, whole, usages, high, tokens, grants)
        return any(one.waiting and _full(one) for one in usages)

    async def _set(
        self,
        fence: int,
        whole: str,
        usages: Sequence[Usage],
        shares: Sequence[Rule],
        tokens: list[float],
        grants: Sequence[Sequence[float]] | None,
    ) -> list[Usage]:
        """Set the shares that differ. Adds to ``tokens`` what they gave back."""
        changed = [number for number, one in enumerate(usages) if one.share != shares[number]]
        parts = self._queue.store.parts
        replies = await asyncio.gather(
            *(
                parts[at].do(parts[at].share(fence, shares[at].text(), whole, grants[at] if grants else ()))
                for at in changed
            )
        )
        result = list(usages)
        for at, reply in zip(changed, replies, strict=True):
            if not reply:
                raise StoreError(f"another worker balances the shares of queue {self._queue.name!r} now")
            result[at] = read_usage(reply, whole)
            for band, back in enumerate(reply[5 : 5 + len(tokens)]):
                tokens[band] += float(back)
        return result


def _grant(rule: Rule, share: Rule, usage: Usage, tokens: list[float]) -> list[float]:
    """Tokens for a share that is raised, out of those that others gave back."""
    given: list[float] = []
    for at, (more, had) in enumerate(zip(bursts_of(rule, share), bursts_of(rule, usage.share or BLOCKED), strict=True)):
        given.append(min(float(more - had), tokens[at]))
        tokens[at] -= given[at]
    return given


def _full(usage: Usage) -> bool:
    share = usage.share
    return share is None or bool(share.rate) or (share.concurrency is not None and usage.running >= share.concurrency)
