"""The webhooks of a queue: their rows, and how far their follower has come."""

from __future__ import annotations

from typing import Any

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.scheduling import Scheduling


class WebhookRows(Scheduling):
    """The part of a store that keeps webhooks."""

    def follow_events(self, follower: str, ms: int, fence: int = 0, cursor: str = "") -> Call[list[Any]]:
        """Take the turn to follow the events for the webhooks, for ``ms`` from now on, or extend it. ``cursor``: how
        far the turn with this ``fence`` has come.

        Returns the fence of the turn, 0 if another process has it or there is no webhook, and the stored cursor.
        """
        return Call("follow_events", [self.now, follower, ms, fence, cursor], read_as_is)

    async def webhooks(self) -> dict[bytes, tuple[bytes, bytes | None, bytes | None]]:
        """All webhooks: the row, why jobq disabled it, and its failed attempts since the last success."""
        rows, flat = await self.commands((b"HGETALL", self.keys["webhooks"]), (b"HGETALL", self.keys["webhook_facts"]))
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        return {
            name: (row, facts.get(b"disabled:" + name), facts.get(b"failures:" + name))
            for name, row in zip(rows[::2], rows[1::2], strict=True)
        }

    async def count_webhooks(self) -> int:
        """How many webhooks there are."""
        return await self.command(b"HLEN", self.keys["webhooks"])

    async def webhook(self, name: str) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The row of a webhook, why jobq disabled it, and its failed attempts since the last success."""
        row = await self.command(b"HGET", self.keys["webhooks"], name)
        facts = await self.command(b"HMGET", self.keys["webhook_facts"], f"disabled:{name}", f"failures:{name}")
        return row, facts[0], facts[1]

    async def write_webhook(self, name: str, row: bytes) -> None:
        """Write a webhook. What jobq has noted of it is forgotten."""
        await self.command(b"HSET", self.keys["webhooks"], name, row)
        await self.command(b"HDEL", self.keys["webhook_facts"], f"disabled:{name}", f"failures:{name}")

    async def remove_webhook(self, name: str) -> bool:
        """Remove a webhook. Returns False if there is none."""
        found = await self.command(b"HDEL", self.keys["webhooks"], name)
        await self.command(b"HDEL", self.keys["webhook_facts"], f"disabled:{name}", f"failures:{name}")
        if not await self.count_webhooks():
            # The next webhook has a place of its own. Without this one, nobody reads what came before it.
            await self.command(b"HDEL", self.keys["webhook_facts"], b"cursor")
        return found == 1

    async def count_webhook_failure(self, name: str) -> int:
        """Count a failed attempt. Returns the number since the last success."""
        return await self.command(b"HINCRBY", self.keys["webhook_facts"], f"failures:{name}", 1)

    async def forget_webhook_failures(self, name: str) -> None:
        """Note that a delivery succeeded."""
        await self.command(b"HDEL", self.keys["webhook_facts"], f"failures:{name}")

    def disable_webhook(self, name: str, row: bytes, reason: str) -> Call[int]:
        """Note that jobq tells a webhook nothing more, if it still has the row that was read. Returns 1, or 0 if it was
        changed or disabled meanwhile."""
        return Call("disable_webhook", [name, row, reason], read_as_is)
