"""The webhooks of a queue: their rows, and how far their follower has come."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from jobq.engine.store.calls import Call, read_as_is
from jobq.engine.store.scheduling import Scheduling


class WebhookFacts(NamedTuple):
    """What is stored of a webhook. ``disabled``: why jobq disabled it. ``failures``: failed attempts since the last
    success. ``failing_since``: when the first of them was, unix ms."""

    row: bytes | None
    disabled: bytes | None
    failures: int
    failing_since: int | None


_Default = TypeVar("_Default")
_FACTS = ("disabled", "failures", "failing")


class WebhookRows(Scheduling):
    """The part of a store that keeps webhooks."""

    def follow_events(self, follower: str, ms: int, fence: int = 0, cursor: str = "") -> Call[list[Any]]:
        """Take the turn to follow the events for the webhooks, for ``ms`` from now on, or extend it. ``cursor``: how
        far the turn with this ``fence`` has come.

        Returns the fence of the turn, 0 if another process has it or there is no webhook, and the stored cursor.
        """
        return Call("follow_events", [self.now, follower, ms, fence, cursor], read_as_is)

    async def webhooks(self) -> dict[bytes, WebhookFacts]:
        """All webhooks."""
        rows, flat = await self.commands((b"HGETALL", self.keys["webhooks"]), (b"HGETALL", self.keys["webhook_facts"]))
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        return {
            name: _facts(row, [facts.get(b"%s:%s" % (fact.encode(), name)) for fact in _FACTS])
            for name, row in zip(rows[::2], rows[1::2], strict=True)
        }

    async def count_webhooks(self) -> int:
        """How many webhooks there are."""
        return await self.command(b"HLEN", self.keys["webhooks"])

    async def webhook(self, name: str) -> WebhookFacts:
        """A webhook. Its row is None if there is none."""
        row = await self.command(b"HGET", self.keys["webhooks"], name)
        return _facts(row, await self.command(b"HMGET", self.keys["webhook_facts"], *_fields(name)))

    def webhook_write(self, name: str, before: bytes, row: bytes, most: int, *, forget: bool = False) -> Call[bytes]:
        """Write a webhook, or remove it (``row=b""``), if it still has the row that was read (b"": there was none).

        ``forget``: also what jobq has noted of it. Returns b"ok", b"stale" or b"full".
        """
        return Call("webhook_write", [name, before, row, int(forget), most], read_as_is)

    async def count_webhook_failure(self, name: str) -> tuple[int, int]:
        """Count a failed attempt. Returns the number since the last success, and for how many ms attempts fail."""
        facts, now = self.keys["webhook_facts"], self.now_ms()
        _, count, since = await self.commands(
            (b"HSETNX", facts, f"failing:{name}", now),
            (b"HINCRBY", facts, f"failures:{name}", 1),
            (b"HGET", facts, f"failing:{name}"),
        )
        return count, now - _number(since, now)

    async def forget_webhook_failures(self, name: str) -> bool:
        """Note that a delivery succeeded. Returns whether attempts before it had failed."""
        return await self.command(b"HDEL", self.keys["webhook_facts"], *_fields(name)[1:]) > 0

    def disable_webhook(self, name: str, row: bytes, reason: str) -> Call[int]:
        """Disable a webhook, if it still has the row that was read. Returns 1, or 0 if it was changed or disabled
        meanwhile."""
        return Call("disable_webhook", [name, row, reason], read_as_is)


def _fields(name: str) -> list[str]:
    return [f"{fact}:{name}" for fact in _FACTS]


def _facts(row: bytes | None, found: list[bytes | None]) -> WebhookFacts:
    disabled, failures, failing = found
    return WebhookFacts(row, disabled, _number(failures, 0), _number(failing, None))


def _number(text: bytes | None, default: _Default) -> int | _Default:
    """A stored number. A damaged one hides nothing else."""
    return int(text) if text is not None and text.isdigit() else default
