"""The webhooks of a queue: their rows, and how far their follower has come."""

from __future__ import annotations

from typing import Any

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.scheduling import Scheduling


class WebhookRows(Scheduling):
    """The part of a store that keeps webhooks."""

    def follow_events(self, follower: str, ms: int, cursor: str) -> Call[list[Any]]:
        """Follow the events for the webhooks, for ``ms`` from now on. Store how far this has come, unless ``cursor`` is
        empty. Returns 1 if nobody else follows, else 0, and the stored cursor."""
        return Call("follow_events", [self.now, follower, ms, cursor], read_as_is)

    async def webhooks(self) -> dict[bytes, bytes]:
        """The rows of all webhooks."""
        flat = await self.command(b"HGETALL", self.keys["webhooks"])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def webhook(self, name: str) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The row of a webhook, why jobq disabled it, and its failed attempts since the last success."""
        row = await self.command(b"HGET", self.keys["webhooks"], name)
        facts = await self.command(b"HMGET", self.keys["webhook_facts"], f"disabled:{name}", f"failures:{name}")
        return row, facts[0], facts[1]

    async def write_webhook(self, name: str, row: bytes, cursor: str) -> None:
        """Write a webhook. What jobq has noted of it is forgotten. ``cursor``: where the first webhook begins."""
        facts = self.keys["webhook_facts"]
        await self.command(b"HSETNX", facts, b"cursor", cursor)
        await self.command(b"HSET", self.keys["webhooks"], name, row)
        await self.command(b"HDEL", facts, f"disabled:{name}", f"failures:{name}")

    async def remove_webhook(self, name: str) -> bool:
        """Remove a webhook. Returns False if there is none."""
        found = await self.command(b"HDEL", self.keys["webhooks"], name)
        await self.command(b"HDEL", self.keys["webhook_facts"], f"disabled:{name}", f"failures:{name}")
        if not await self.command(b"EXISTS", self.keys["webhooks"]):
            # The next webhook begins with events of its own time.
            await self.command(b"HDEL", self.keys["webhook_facts"], b"cursor")
        return found == 1

    async def count_webhook_failure(self, name: str) -> int:
        """Count a failed attempt. Returns the number since the last success."""
        return await self.command(b"HINCRBY", self.keys["webhook_facts"], f"failures:{name}", 1)

    async def forget_webhook_failures(self, name: str) -> None:
        """Note that a delivery succeeded."""
        await self.command(b"HDEL", self.keys["webhook_facts"], f"failures:{name}")

    async def disable_webhook(self, name: str, reason: str) -> bool:
        """Disable a webhook. Returns False if it was disabled already."""
        return await self.command(b"HSETNX", self.keys["webhook_facts"], f"disabled:{name}", reason) == 1
