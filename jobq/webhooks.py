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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from jobq.duration import read_retry_after
from jobq.engine.log import get_logger
from jobq.engine.model.backoff import Backoff, delay_ms, stored_backoff
from jobq.engine.model.limits import Concurrency
from jobq.engine.model.webhook import WEBHOOKS_MAX, Delivery, StoredWebhook, signed_headers
from jobq.engine.queue.announce import Announcer
from jobq.engine.queue.webhooks import AT_ONCE, RULE, TYPE, disable_webhook, pause_webhook, read_webhook
from jobq.engine.task.context import Context, inject
from jobq.engine.version import jobq_version
from jobq.engine.worker.worker import Worker
from jobq.errors import Discard, Retry, SettingsError, Snooze, StoreError
from jobq.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Network

    from jobq.engine.queue.queue import Queue

log = get_logger("jobq.webhooks")

LOOK = 5.0
"""Seconds between two looks for the first webhook of a queue."""
CONCURRENCY: Final = AT_ONCE * WEBHOOKS_MAX
"""Deliveries of a queue at the same time. Each webhook has places of its own, so those that do not answer take none of
the others'. A delivery that waits costs little: a socket and some KB."""
ATTEMPTS: Final = 10
BACKOFF = Backoff(delays=[5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400])
"""The schedule that the specification of Standard Webhooks gives as an example. The attempts take three days."""
TIMEOUT = 15.0
"""Seconds that an answer may take."""
GRACE = 3.0
"""Seconds for which a server that stops waits for answers. Other deliveries are handed back, and sent again later."""
ANSWER_MAX: Final = 1024
"""Bytes of an answer that are read. Its text shows in the error of the delivery."""
PAUSED_AFTER = 10
"""Failed attempts without a delivery that succeeded, after which deliveries wait between attempts: an address that is
away gets few requests, and deliveries keep most of their attempts."""
PAUSE = 10.0
PAUSE_MAX = 600.0
DISABLED_AFTER = timedelta(days=3)
"""A webhook is disabled if all attempts fail for so long."""
RETRY_MAX: Final = 3600.0
AGAIN = 1.0
"""Seconds after which a delivery looks again whether the one before it has ended, at first."""
AGAIN_MAX: Final = 60.0
SNOOZES_MAX: Final = 1_000_000
"""The one before it may be tried for days, and that one may have waited for an earlier one in the same way."""
_PRIVATE = [
    ip_network(one)
    for one in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip
"""Special addresses (IANA's registries). Teredo and 6to4 are among them: they lead to any IPv4 address."""
_PUBLIC6 = IPv6Network("2000::/3")
"""All public IPv6 addresses. Outside of it are further ways to write or reach an IPv4 address."""
_NAT64 = IPv6Network("64:ff9b::/96")
"""In a network without IPv4, names of IPv4 hosts resolve to these addresses. The last 32 bits are the host's."""
_encode = msgspec.json.Encoder().encode


class DeliveryFailed(Exception):
    """An address did not accept a delivery. ``wait``: the seconds for which it wants no other one."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(message)


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
        inner = _inner(address)
        if _among(address, self._allowed) or _among(inner, self._allowed):
            return
        if _among(inner, _PRIVATE) or (isinstance(inner, IPv6Address) and inner not in _PUBLIC6):
            raise AddressRefused(f"the address {address} is not public; JOBQ_WEBHOOK_ALLOW can allow its network")

    def socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Make the socket of a connection, if its address may be reached. Every connection comes through here, so it
        does not matter how the address was written, or to what a name resolves a moment later.

        :raises AddressRefused: it may not.
        """
        family, kind, protocol, _, where = address
        self.check(str(where[0]))
        return socket.socket(family, kind, protocol)


def _among(address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks if address.version == network.version)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Resolver(AbstractResolver):
    """Resolves names in threads of its own. Each name is looked up once at a time. So names whose servers do not answer
    take one thread each, and none of the threads that other names and the service itself need."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(WEBHOOKS_MAX, "jobq-webhooks")
        self._asked: dict[tuple[str, int, int], asyncio.Future[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host.

        :raises OSError: it has none.
        """
        key = (host, port, int(family))
        found = self._asked.get(key)
        if found is None:
            found = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port, family)
            self._asked[key] = found
            found.add_done_callback(lambda done: self._asked.pop(key) and (done.cancelled() or done.exception()))
        return await asyncio.shield(found)  # Others may wait for it, too.

    async def close(self) -> None:
        """Forget what nobody waits for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host, host=str(where[0]), port=port, family=family, proto=protocol, flags=socket.AI_NUMERICHOST
        )
        for family, _, protocol, _, where in found
    ]


class Deliverer:
    """Delivers the webhooks of one queue."""

    def __init__(self, queue: Queue, deliveries: Queue, session: ClientSession) -> None:
        self._queue = queue
        self._deliveries = deliveries
        self._session = session

    async def deliver(self, delivery: Delivery, ctx: Context) -> int:
        """Send one delivery. Returns the status of the answer."""
        name = delivery.webhook
        row, disabled, *_ = await self._queue.store.webhook(name)
        hook = read_webhook(row) if row else None
        if row is None or hook is None or delivery.made_at not in (None, hook.created_at):
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
        except DeliveryFailed as error:
            if not testing:
                await self._failed(name, row, error)
            # An address may ask for a second again and again. So its time only makes the backoff longer, or a delivery
            # would have used all of its attempts after some seconds.
            if error.wait * 1000 > delay_ms(stored_backoff(BACKOFF), ctx.attempt):
                raise Retry(str(error), delay=error.wait) from None
            raise
        if status == 410:
            await disable_webhook(self._queue, name, row, "the address answered 410: it is gone")
            raise Discard(f"webhook {name} answered 410, and is disabled")
        # A failure that came at the same moment may have closed the key after it was forgotten. A test opens it always.
        if await self._queue.store.forget_webhook_failures(name) or testing:
            await pause_webhook(self._deliveries, name, 0)
        return status

    async def _is_unfinished(self, delivery: str) -> bool:
        store = self._deliveries.store
        return (await store.do(store.results([delivery])))[0] == b"pending"

    async def _send(self, hook: StoredWebhook, message_id: str, body: bytes) -> int:
        # The worker of the deliveries reads the clock again and again. Nobody may do so for the queue itself.
        headers = signed_headers(hook.secrets, message_id, self._deliveries.store.now_ms(), body)
        headers |= {"Content-Type": "application/json", "User-Agent": f"jobq/{jobq_version()}"}
        try:
            async with self._session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status // 100 == 2 or answer.status == 410:
                    return answer.status
                said = await answer.content.read(ANSWER_MAX)
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            refused = _refusal(error)
            raise DeliveryFailed(f"not sent: {refused or f'{type(error).__name__}: {error}'}"[:500]) from None
        words = printable(said.decode(errors="replace"))[:200]
        if answer.status // 100 == 3:
            raise DeliveryFailed(f"the address answered {answer.status}, and redirects are not followed")
        wait = read_retry_after(answer.headers.get("Retry-After", "")) if answer.status in (429, 503) else None
        raise DeliveryFailed(f"the address answered {answer.status}: {words}", min(wait or 0.0, RETRY_MAX))

    async def _failed(self, name: str, row: bytes, error: DeliveryFailed) -> None:
        count, failing_ms = await self._queue.store.count_webhook_failure(name)
        if count >= PAUSED_AFTER and failing_ms >= DISABLED_AFTER.total_seconds() * 1000:
            reason = f"all {count} attempts of {DISABLED_AFTER.days} days failed; the last one: {error}"
            await disable_webhook(self._queue, name, row, reason[:500])
        elif error.wait:
            await pause_webhook(self._deliveries, name, error.wait)
        elif count >= PAUSED_AFTER:
            # Up to AT_ONCE attempts fail at the same time.
            doubled = min((count - PAUSED_AFTER) // AT_ONCE, 10)
            await pause_webhook(self._deliveries, name, min(PAUSE * 2**doubled, PAUSE_MAX))


def _refusal(error: BaseException) -> str | None:
    """The refusal behind an error of aiohttp."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AddressRefused):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


async def deliver_webhooks(
    queue: Queue,
    *,
    allow: str | None = None,
    began: Callable[[Queue], None] | None = None,
    failed: Callable[[], None] | None = None,
) -> None:
    """Deliver events of an open queue to its webhooks, until cancelled. A queue without webhooks costs one call every
    few seconds.

    ``allow``: networks of private addresses that may be reached; by default ``settings.webhook_allow``.
    ``began``: called with the queue of the deliveries when there is a webhook. ``failed``: called when events could not
    be passed on because of an error that nobody expected. The log has it, and it is tried again.

    :raises SettingsError: ``allow`` cannot be read.
    :raises Exception: the error that ended the worker of the deliveries.
    """
    guard = Guard(queue.settings.webhook_allow if allow is None else allow)
    while True:
        with suppress(StoreError):  # Others report that Redis is away.
            if await queue.store.count_webhooks():
                break
        await asyncio.sleep(LOOK)
    connector = TCPConnector(resolver=Resolver(), limit=CONCURRENCY, use_dns_cache=False, socket_factory=guard.socket)
    timeout = ClientTimeout(total=TIMEOUT, sock_connect=5.0)
    async with (
        ClientSession(connector=connector, timeout=timeout, auto_decompress=False, trust_env=False) as session,
        queue.webhook_queue() as deliveries,
    ):
        deliverer = Deliverer(queue, deliveries, session)

        @deliveries.task(
            name=TYPE,
            attempts=ATTEMPTS,
            backoff=BACKOFF,
            timeout=2 * TIMEOUT,
            max_snoozes=SNOOZES_MAX,
            limits=[Concurrency(AT_ONCE, by="webhook", name=RULE)],
        )
        async def deliver(
            webhook: str,
            body: dict[str, Any],
            previous: str | None = None,
            made_at: int | None = None,
            ctx: Context = inject,
        ) -> int:
            return await deliverer.deliver(Delivery(webhook, body, previous, made_at), ctx)

        if began is not None:
            began(deliveries)
        async with Worker(deliveries, concurrency=CONCURRENCY, grace=GRACE) as worker:
            worker.start()
            following = asyncio.create_task(Announcer(queue, deliveries, failed).run(), name="jobq-webhooks")
            try:
                await worker.finished()
            finally:
                following.cancel()
                await asyncio.wait([following])
