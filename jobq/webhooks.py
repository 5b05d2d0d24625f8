"""Delivers the events of queues to webhooks, in the format of Standard Webhooks.

Servers of jobq do this by themselves. In a service without one:

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deliver_webhooks(queue))

A delivery is a job of the queue ``<name>.webhooks``. An address of a webhook is somebody's text, and requests to it
come from inside of your network. So private, loopback and link-local addresses are refused, at the time of each
connection and after the name was resolved, unless ``allow`` has them. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from jobq.engine.log import get_logger
from jobq.engine.model.backoff import Backoff
from jobq.engine.model.limits import Concurrency
from jobq.engine.model.webhook import Delivery, StoredWebhook, signed_headers
from jobq.engine.queue.announce import Announcer
from jobq.engine.queue.webhooks import TYPE, read_webhook
from jobq.engine.task.context import Context, inject
from jobq.engine.version import jobq_version
from jobq.engine.worker.worker import Worker
from jobq.errors import Discard, Retry, SettingsError, Snooze, StoreError
from jobq.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network, IPv6Network

    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.webhooks")

LOOK = 5.0
"""Seconds between two looks for the first webhook of a queue."""
AT_ONCE: Final = 4
"""Deliveries to one webhook at the same time, so that a slow one does not take all places."""
CONCURRENCY: Final = 50
ATTEMPTS: Final = 12
"""With the usual backoff these take about an hour and a half."""
BACKOFF = Backoff()
TIMEOUT = 15.0
"""Seconds that an answer may take."""
ANSWER_MAX: Final = 1024
"""Bytes of an answer that are read. Its text shows in the error of the delivery."""
DISABLED_AFTER = 100
"""Failed attempts without a delivery that succeeded, after which a webhook is disabled."""
RETRY_MAX: Final = 3600.0
AGAIN = 1.0
"""Seconds after which a delivery looks again whether the one before it has ended, at first."""
AGAIN_MAX: Final = 60.0
_NAT64 = ip_network("64:ff9b::/96")
_encode = msgspec.json.Encoder().encode


class DeliveryFailed(Exception):
    """An address did not accept a delivery."""


class AddressRefused(OSError):
    """The address of a webhook is private, and not allowed."""


class Guard:
    """Which addresses may be reached. ``allow``: networks such as "10.0.0.0/8", comma separated.

    :raises SettingsError: ``allow`` cannot be read.
    """

    def __init__(self, allow: str | None) -> None:
        try:
            self._allowed: list[IPv4Network | IPv6Network] = [
                ip_network(one.strip()) for one in (allow or "").split(",") if one.strip()
            ]
        except ValueError as error:
            raise SettingsError(f"webhook_allow: {error}; give networks such as 10.0.0.0/8, comma separated") from None

    def check(self, host: str) -> None:
        """Check an address.

        :raises AddressRefused: it is private, and not allowed.
        """
        address = ip_address(host.partition("%")[0])
        inner = _inside(address)
        if any(
            one in network for one in {address, inner} for network in self._allowed if one.version == network.version
        ):
            return
        if not inner.is_global or inner.is_multicast or (inner is address and not address.is_global):
            raise AddressRefused(f"the address {address} is not public; JOBQ_WEBHOOK_ALLOW can allow its network")


def _inside(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address leads to, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address.teredo is not None:
            return address.teredo[1]
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to private addresses. aiohttp connects to these very addresses, so a
    name that resolves to another address a moment later changes nothing."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host.

        :raises AddressRefused: one of them is private.
        """
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            self._guard.check(one["host"])
        return found

    async def close(self) -> None:
        """Nothing to close."""
        await self._resolver.close()


class Deliverer:
    """Delivers the webhooks of one queue."""

    def __init__(self, queue: Queue, deliveries: Queue, session: ClientSession, guard: Guard) -> None:
        self._queue = queue
        self._deliveries = deliveries
        self._session = session
        self._guard = guard

    async def deliver(self, delivery: Delivery, ctx: Context) -> int:
        """Send one delivery. Returns the status of the answer."""
        name = delivery.webhook
        row, disabled, _ = await self._queue.store.webhook(name)
        hook = read_webhook(row) if row else None
        if hook is None:
            raise Discard(f"there is no webhook {name} any more")
        testing = delivery.body.get("type") == "webhook.test"
        if not testing and (disabled is not None or not hook.enabled):
            raise Discard(f"webhook {name} is disabled")
        if delivery.previous is not None and await self._is_unfinished(delivery.previous):
            # It may be tried for hours, so look more and more rarely.
            raise Snooze(
                min(AGAIN * 2 ** min(ctx.snoozes, 10), AGAIN_MAX),
                f"{delivery.previous} is delivered first: it is about the same job",
            )
        try:
            status = await self._send(hook, ctx.id, _encode(delivery.body))
        except (DeliveryFailed, Retry) as error:
            await self._failed(name, str(error), testing=testing)
            raise
        if status == 410:
            await self._disable(name, "the address answered 410: it is gone")
            raise Discard(f"webhook {name} answered 410, and is disabled")
        await self._queue.store.forget_webhook_failures(name)
        return status

    async def _is_unfinished(self, delivery: str) -> bool:
        store = self._deliveries.store
        return (await store.do(store.results([delivery])))[0] == b"pending"

    async def _send(self, hook: StoredWebhook, message_id: str, body: bytes) -> int:
        headers = signed_headers(hook.secrets, message_id, self._queue.store.now_ms(), body)
        headers |= {"Content-Type": "application/json", "User-Agent": f"jobq/{jobq_version()}"}
        try:
            host = urlsplit(hook.url).hostname or ""
            with suppress(ValueError):  # It is a name, which the resolver checks.
                self._guard.check(host)
            async with self._session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status // 100 == 2 or answer.status == 410:
                    return answer.status
                said = await answer.content.read(ANSWER_MAX)
        except AddressRefused as error:
            raise DeliveryFailed(f"not sent: {error}") from None
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            refused = _refusal(error)
            raise DeliveryFailed(f"not sent: {refused or f'{type(error).__name__}: {error}'}"[:500]) from None
        words = printable(said.decode(errors="replace"))[:200]
        if answer.status // 100 == 3:
            raise DeliveryFailed(f"the address answered {answer.status}, and redirects are not followed")
        wait = answer.headers.get("Retry-After", "")
        if answer.status in (429, 503) and wait.isascii() and wait.isdigit():
            raise Retry(f"the address answered {answer.status}: {words}", delay=min(float(wait), RETRY_MAX))
        raise DeliveryFailed(f"the address answered {answer.status}: {words}")

    async def _failed(self, name: str, why: str, *, testing: bool) -> None:
        if not testing and await self._queue.store.count_webhook_failure(name) >= DISABLED_AFTER:
            await self._disable(
                name, f"{DISABLED_AFTER} attempts failed one after the other; the last one: {why}"[:500]
            )

    async def _disable(self, name: str, reason: str) -> None:
        if await self._queue.store.disable_webhook(name, reason):
            log.warning(
                f"Webhook {name} of queue {self._queue.name} was disabled, and PUT /webhooks/{name} enables it again:"
                f" {reason}",
                queue=self._queue.name, webhook=name,
            )  # fmt: skip


def _refusal(error: BaseException) -> str | None:
    """The refusal behind an error of aiohttp."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AddressRefused):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


async def deliver_webhooks(
    queue: Queue, *, allow: str | None = None, began: Callable[[Queue], None] | None = None
) -> None:
    """Deliver events of an open queue to its webhooks, until cancelled. A queue without webhooks costs one call every
    few seconds.

    ``allow``: networks of private addresses that may be reached; by default ``settings.webhook_allow``.
    ``began``: called with the queue of the deliveries when there is a webhook.

    :raises SettingsError: ``allow`` cannot be read.
    """
    guard = Guard(queue.settings.webhook_allow if allow is None else allow)
    while True:
        with suppress(StoreError):  # Others report that Redis is away.
            if await queue.store.webhooks():
                break
        await asyncio.sleep(LOOK)
    connector = TCPConnector(resolver=GuardedResolver(guard), limit=CONCURRENCY, use_dns_cache=False)
    timeout = ClientTimeout(total=TIMEOUT, sock_connect=5.0)
    async with (
        ClientSession(connector=connector, timeout=timeout, auto_decompress=False, trust_env=False) as session,
        queue.webhook_queue() as deliveries,
    ):
        deliverer = Deliverer(queue, deliveries, session, guard)

        @deliveries.task(
            name=TYPE,
            attempts=ATTEMPTS,
            backoff=BACKOFF,
            timeout=2 * TIMEOUT,
            limits=[Concurrency(AT_ONCE, by="webhook", name="webhook")],
        )
        async def deliver(
            webhook: str, body: dict[str, Any], previous: str | None = None, ctx: Context = inject
        ) -> int:
            return await deliverer.deliver(Delivery(webhook, body, previous), ctx)

        if began is not None:
            began(deliveries)
        async with Worker(deliveries, concurrency=CONCURRENCY) as worker, asyncio.TaskGroup() as tasks:
            worker.start()
            tasks.create_task(Announcer(queue, deliveries).run(), name="jobq-webhooks")
