"""Webhooks of a queue: what operators set. ``jobq.webhooks`` delivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.log import get_logger
from jobq.engine.model.job import State
from jobq.engine.model.options import check_type
from jobq.engine.model.unreadable import as_text
from jobq.engine.model.webhook import (
    ROTATION_MS,
    USUAL,
    WEBHOOKS_MAX,
    Delivery,
    Secret,
    StoredWebhook,
    Webhook,
    WebhookDelivery,
    check_secret,
    check_webhook_events,
    check_webhook_name,
    check_webhook_url,
    delivery_of,
    new_secret,
    timestamp,
)
from jobq.errors import InvalidJob, InvalidQuery, UnknownRule, WebhookNotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from jobq.engine.model.job import Seconds
    from jobq.engine.store import Store
    from jobq.engine.store.webhooks import WebhookFacts
    from jobq.engine.task.handle import Job

log = get_logger("jobq.webhooks")

TYPE = "jobq.webhook"
"""The type of the jobs that deliver."""
RULE: Final = "webhook"
"""The limit of the jobs that deliver: so many at a time for each webhook."""
AT_ONCE: Final = 4
"""Deliveries to one webhook at the same time."""
BACKLOG = 50_000
"""Deliveries that may wait for the places of one webhook. They take about 1 KB of Redis each."""
DELIVERIES_MAX: Final = 200
"""Deliveries that one call returns."""
PAGE: Final = 200
SCANNED: Final = 2000
"""Deliveries of each state among which the last ones of a webhook are searched."""
_ENDING = ".webhooks"
_encode = msgspec.json.Encoder().encode
_row = msgspec.json.Decoder(StoredWebhook)


def delivering_queue(name: str) -> str:
    """The name of the queue of the jobs that deliver the webhooks of a queue."""
    return f"{name}{_ENDING}"


def delivers_for(name: str) -> str | None:
    """The name of the queue for whose webhooks a queue of this name delivers. None: for none."""
    return name.removesuffix(_ENDING) if name.endswith(_ENDING) else None


def read_webhook(row: bytes) -> StoredWebhook | None:
    """A row. None if it is damaged."""
    try:
        found = _row.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.secrets else None


async def disable_webhook(queue: WebhookVerbs, name: str, row: bytes, reason: str) -> None:
    """Tell a webhook nothing more. ``row``: as it was read. One that was changed meanwhile is left alone."""
    if await queue.store.do(queue.store.disable_webhook(name, row, reason)):
        log.warning(
            f"Webhook {name} of queue {queue.name} was disabled, and PUT /webhooks/{name} enables it again: {reason}",
            queue=queue.name, webhook=name,
        )  # fmt: skip


async def pause_webhook(deliveries: Any, name: str, time: Seconds) -> None:
    """Let deliveries to a webhook wait for so long, or no longer (0). ``deliveries``: the queue of their jobs."""
    key = f"{RULE}:{name}"
    with suppress(UnknownRule):  # No process has delivered anything yet.
        await (deliveries.close_limit(key, time) if time else deliveries.open_limit(key))


async def waiting_deliveries(deliveries: Any) -> dict[str, int]:
    """How many deliveries wait for the places of each webhook. ``deliveries``: the queue of the jobs that deliver."""
    reply = await deliveries.store.do(deliveries.store.limits(RULE))
    return {as_text(key).partition(":")[2]: held for key, held in zip(reply[::5], reply[1::5], strict=True)}


class WebhookVerbs(ABC):
    """What operators set of webhooks."""

    name: str

    @property
    @abstractmethod
    def store(self) -> Store:
        """The verbs underneath."""

    @abstractmethod
    async def event_cursor(self) -> str:
        """The cursor of this moment."""

    @abstractmethod
    def webhook_queue(self) -> Any:
        """The queue of the jobs that deliver."""

    async def put_webhook(
        self,
        name: str,
        url: str,
        *,
        events: Collection[str] = USUAL,
        types: Collection[str] | None = None,
        secret: str | None = None,
        enabled: bool = True,
    ) -> Webhook:
        """Make or change a webhook: an address that is told of events of the queue, from now on.

        ``events``: their names. ``types``: only of jobs of these types. ``secret``: one of your own in place of a new
        one; a webhook that exists keeps its secret without it. Only the answer to the first call has the secret.

        :raises InvalidJob: an argument does not fit, or there are 100 webhooks already.
        """
        check_webhook_name(name)
        # The rows and jobs of deliveries have this name in them.
        self.webhook_queue()
        url, wanted = check_webhook_url(url), check_webhook_events(events)
        only = None if types is None else _types(types)
        made = check_secret(secret) if secret is not None else new_secret()

        async def change(before: StoredWebhook | None, facts: WebhookFacts) -> StoredWebhook:
            was_told = before is not None and before.enabled and facts.disabled is None
            return StoredWebhook(
                url,
                wanted,
                only,
                before.secrets if before is not None and secret is None else [Secret(made)],
                bool(enabled),
                before.created_at if before else self.store.now_ms(),
                before.since if before is not None and was_told else await self.event_cursor(),
            )

        await self.store.register()
        row = await self._write_webhook(name, change, forget=True)
        told = made if secret is None and row.secrets[0].secret == made else None
        # Also if it is new: an earlier one of this name may have been paused.
        async with self.webhook_queue() as deliveries:
            await pause_webhook(deliveries, name, 0)
        log.info(f"Webhook {name} of queue {self.name} was set", queue=self.name, webhook=name)
        return msgspec.structs.replace(await self._shown(name, row), secret=told)

    async def get_webhook(self, name: str) -> Webhook:
        """One webhook.

        :raises WebhookNotFound: there is none of this name.
        """
        return await self._shown(name, *await self._stored(name))

    async def webhooks(self) -> list[Webhook]:
        """All webhooks, by name."""
        rows = await self.store.webhooks()
        waiting = await self._waiting() if rows else {}
        # A damaged row must not hide the others.
        return [
            _shown(self.name, as_text(name), stored, facts, waiting)
            for name, facts in sorted(rows.items())
            if facts.row and (stored := read_webhook(facts.row))
        ]

    async def webhook_deliveries(self, name: str, *, limit: int = 20) -> list[WebhookDelivery]:
        """The last deliveries of a webhook that were tried, newest first. They are searched among the newest 2,000 of
        each state.

        :raises WebhookNotFound: there is none of this name.
        :raises InvalidQuery: the limit is not from 1 to 200.
        """
        if not 1 <= limit <= DELIVERIES_MAX:
            raise InvalidQuery(f"limit is {limit}: it takes 1 to {DELIVERIES_MAX}")
        await self._stored(name)
        found: list[WebhookDelivery] = []
        async with self.webhook_queue() as deliveries:
            for state in (State.ACTIVE, State.DELAYED, State.COMPLETED, State.FAILED):
                cursor: str | None = None
                seen = 0
                for _ in range(SCANNED // PAGE):
                    page = await deliveries.page(state, type=TYPE, limit=PAGE, cursor=cursor)
                    mine = [row for row in page.jobs if row.metadata and row.metadata.get("webhook") == name]
                    found += [delivery_of(row) for row in mine if row.attempts_made]
                    seen += len(mine)
                    cursor = page.cursor
                    if cursor is None or seen >= limit:
                        break
        return sorted(found, key=lambda one: one.at, reverse=True)[:limit]

    async def delete_webhook(self, name: str) -> None:
        """Remove a webhook. Deliveries that are left fail.

        :raises WebhookNotFound: there is none of this name.
        """
        name = check_webhook_name(name)
        # Its row may be damaged.
        while found := (await self.store.webhook(name)).row:
            if await self.store.do(self.store.webhook_write(name, found, b"", WEBHOOKS_MAX)) == b"ok":
                break
        else:
            raise WebhookNotFound(name)
        log.info(f"Webhook {name} of queue {self.name} was removed", queue=self.name, webhook=name)

    async def rotate_webhook(self, name: str) -> Webhook:
        """Give a webhook a new secret, which the answer has. For 24 hours deliveries are signed with both.

        :raises WebhookNotFound: there is none of this name.
        """
        secret = new_secret()

        async def change(before: StoredWebhook | None, _: WebhookFacts) -> StoredWebhook:
            if before is None:
                raise WebhookNotFound(name)
            if before.secrets[0].secret == secret:
                return before  # The reply to the first call was lost, and somebody changed the webhook since.
            until = self.store.now_ms() + ROTATION_MS
            return msgspec.structs.replace(before, secrets=[Secret(secret), Secret(before.secrets[0].secret, until)])

        await self._write_webhook(check_webhook_name(name), change)
        log.info(f"Webhook {name} of queue {self.name} has a new secret", queue=self.name, webhook=name)
        return msgspec.structs.replace(await self.get_webhook(name), secret=secret)

    async def test_webhook(self, name: str) -> Job[Any]:
        """Deliver an event "webhook.test". Returns the job that delivers it, in the queue ``webhook_queue()``.

        :raises WebhookNotFound: there is none of this name.
        """
        await self._stored(name)
        body = {"type": "webhook.test", "timestamp": timestamp(self.store.now_ms()), "data": {"queue": self.name}}
        async with self.webhook_queue() as deliveries:
            return await deliveries.enqueue(
                TYPE, Delivery(name, body), attempts=1, limits=[], metadata={"webhook": name, "event": "test"}
            )

    async def _write_webhook(
        self,
        name: str,
        change: Callable[[StoredWebhook | None, WebhookFacts], Awaitable[StoredWebhook]],
        *,
        forget: bool = False,
    ) -> StoredWebhook:
        """Write what ``change`` makes of the stored row. Others may change it meanwhile, so this reads it again then.

        :raises InvalidJob: there are 100 webhooks already.
        """
        while True:
            facts = await self.store.webhook(name)
            row = await change(read_webhook(facts.row) if facts.row else None, facts)
            write = self.store.webhook_write(name, facts.row or b"", _encode(row), WEBHOOKS_MAX, forget=forget)
            word = await self.store.do(write)
            if word == b"full":
                raise InvalidJob(f"queue {self.name!r} has {WEBHOOKS_MAX} webhooks: remove some first")
            if word == b"ok":
                return row

    async def _waiting(self) -> dict[str, int]:
        async with self.webhook_queue() as deliveries:
            return await waiting_deliveries(deliveries)

    async def _shown(self, name: str, row: StoredWebhook, facts: WebhookFacts | None = None) -> Webhook:
        return _shown(self.name, name, row, facts, await self._waiting())

    async def _stored(self, name: str) -> tuple[StoredWebhook, WebhookFacts]:
        facts = await self.store.webhook(check_webhook_name(name))
        row = read_webhook(facts.row) if facts.row else None
        if row is None:
            raise WebhookNotFound(name)
        return row, facts


def _types(types: Collection[str]) -> list[str]:
    if isinstance(types, str) or len(types) > WEBHOOKS_MAX:
        raise InvalidJob(f"webhook types {types!r:.80}: give a list of at most {WEBHOOKS_MAX} types")
    for one in types:
        check_type(one)
    return sorted(set(types))


def _shown(
    queue: str, name: str, row: StoredWebhook, facts: WebhookFacts | None, waiting: Mapping[str, int]
) -> Webhook:
    reason = None if facts is None or facts.disabled is None else as_text(facts.disabled)
    return Webhook(
        name, queue, row.url, row.events, row.types, row.enabled and reason is None, row.created_at, reason,
        facts.failures if facts else 0, facts.failing_since if facts else None, waiting.get(name, 0),
    )  # fmt: skip
