"""The durability of each call: an fsync, a replica, or nothing. The tests count the commands that the server got."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Connection, NewJob, Queue
from jobq.errors import DurabilityRefused, DurabilityUnavailable, InvalidJob
from tests.conftest import Server, Until, server_kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WAITAOF = pytest.mark.skipif(server_kind() == "redis", reason="Redis 7.0 has no WAITAOF")


class Watched:
    """A server of these tests, and the commands that it got."""

    def __init__(self, server: Server, admin: Connection) -> None:
        self.server = server
        self.url = server.url
        self._admin = admin

    async def command(self, *words: str) -> Any:
        """Send one command of the test."""
        packed = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        return (await self._admin.trip(packed.encode(), 1))[0]

    async def asked(self, command: str) -> int:
        """The number of these commands since the test began."""
        text: bytes = await self.command("INFO", "commandstats")
        for line in text.decode().splitlines():
            if line.startswith(f"cmdstat_{command}:calls="):
                return int(line.partition("=")[2].partition(",")[0])
        return 0


@pytest.fixture(scope="module")
def aof_server() -> Iterator[Server]:
    """A server that stores its data and has no replica."""
    server = Server("--appendonly", "yes", "--appendfsync", "everysec").start()
    yield server
    server.stop()


@pytest.fixture
async def watched(aof_server: Server) -> AsyncIterator[Watched]:
    admin = Connection(aof_server.admin_url)
    watched = Watched(aof_server, admin)
    await watched.command("CONFIG", "SET", "appendonly", "yes")
    await watched.command("FLUSHALL")
    await watched.command("CONFIG", "RESETSTAT")
    yield watched
    await admin.aclose()


def quick(watched: Watched, **options: Any) -> Queue:
    """A queue that soon stops waiting for a replica. There is no replica."""
    return Queue("calls", watched.url, **{"durability_timeout": 0.05, **options})


async def test_only_a_durable_call_waits_for_its_confirmation(watched: Watched):
    async with quick(watched) as queue:
        await queue.enqueue("send")
        assert await watched.asked("wait") == 0
        with pytest.raises(DurabilityUnavailable, match="'replicated' was not confirmed within 50 ms"):
            await queue.enqueue("send", durability="replicated")
        assert await watched.asked("wait") == 1
        await queue.enqueue("send")
        assert await watched.asked("wait") == 1
        assert (await queue.stats()).waiting == 3


async def test_every_way_to_enqueue_accepts_a_durability(watched: Watched):
    queue = quick(watched)

    @queue.task
    async def send(n: int = 0) -> None: ...

    async with queue:
        doors = [
            lambda: queue.enqueue("send", durability="replicated"),
            lambda: queue.enqueue_many([queue.new("send")], durability="replicated"),
            lambda: queue.submit(NewJob("send"), durability="replicated"),
            lambda: queue.submit_many([NewJob("send")], durability="replicated"),
            lambda: send.options(durability="replicated").enqueue(1),
            lambda: send.options(durability="replicated", delay=5).enqueue_many([{"n": 1}]),
        ]
        for count, door in enumerate(doors, 1):
            with pytest.raises(DurabilityUnavailable):
                await door()
            assert await watched.asked("wait") == count
        await send.options(delay=5).enqueue(1)
        assert await watched.asked("wait") == len(doors)


async def test_the_durability_of_a_call_overrides_that_of_its_queue(watched: Watched):
    """More than the queue, or explicitly less."""
    async with quick(watched, durability="replicated") as queue:
        await queue.enqueue("send", durability="none")
        assert await watched.asked("wait") == 0
        with pytest.raises(DurabilityUnavailable):
            await queue.enqueue("send")
        assert await watched.asked("wait") == 1


async def test_calls_of_one_durability_share_trips_and_those_of_two_never(watched: Watched):
    async with quick(watched) as queue:
        await queue.enqueue("send")
        asked = await watched.asked("evalsha")
        calls = [queue.enqueue("send", durability=how) for _ in range(50) for how in ("none", "replicated")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert not [answer for answer in answers[::2] if isinstance(answer, BaseException)]
        assert {type(answer) for answer in answers[1::2]} == {DurabilityUnavailable}
        assert await watched.asked("wait") == 2
        assert await watched.asked("evalsha") - asked == 4
        assert (await queue.stats()).waiting == 101


async def test_calls_do_not_wait_for_the_confirmation_of_others(watched: Watched, until: Until):
    """A trip that waits for a replica for 30 s delays only calls of its own durability."""
    async with quick(watched, durability_timeout=30) as queue:
        slow = asyncio.create_task(queue.enqueue("send", durability="replicated"))
        try:
            await until(lambda: watched.asked("evalsha"), "the trip is in the air")
            await asyncio.wait_for(asyncio.gather(*[queue.enqueue("send") for _ in range(20)]), 5)
            assert not slow.done()
        finally:
            slow.cancel()
            await asyncio.wait([slow])


@WAITAOF
async def test_an_fsync_for_one_call(watched: Watched):
    async with quick(watched, durability_timeout=5) as queue:
        jobs = await asyncio.gather(*[queue.enqueue("send", durability="fsynced") for _ in range(50)])
        await queue.enqueue("send")
        assert await watched.asked("waitaof") == 2
        assert len({job.id for job in jobs}) == 50


@WAITAOF
async def test_a_duplicate_is_as_durable_as_it_was_asked_for(watched: Watched):
    """The earlier call did not wait. The second one returns its job and confirms that it is on the disk."""
    async with quick(watched) as queue:
        first = await queue.enqueue("send", key="k")
        with pytest.raises(DurabilityUnavailable):
            await queue.enqueue("send", key="k", durability="replicated")
    async with quick(watched, durability_timeout=5) as queue:
        second = await queue.enqueue("send", key="k", durability="fsynced")
        assert (second.id, second.duplicate) == (first.id, True)
        assert await watched.asked("waitaof") == 1


@WAITAOF
async def test_the_server_is_checked_once(watched: Watched):
    async with quick(watched, durability_timeout=5) as queue:
        await queue.enqueue("send", durability="fsynced")
        looks = await watched.asked("config|get")
        await queue.enqueue("send", durability="fsynced")
        await queue.enqueue_many([queue.new("send")], durability="fsynced")
        assert await watched.asked("config|get") == looks


async def test_an_unsupported_durability_is_refused_and_nothing_is_written(watched: Watched):
    """The error comes before the write. Once the server supports it, the call succeeds."""
    words = r"needs WAITAOF, which this Redis 7\.0 does not have"
    if server_kind() != "redis":
        await watched.command("CONFIG", "SET", "appendonly", "no")
        words = "set appendonly yes"
    async with quick(watched, durability_timeout=5) as queue:
        await queue.enqueue("send")
        refused = await asyncio.gather(
            queue.enqueue("send", durability="fsynced"),
            queue.enqueue("send", durability="fsynced"),
            queue.enqueue_many([queue.new("send")] * 3, durability="fsynced"),
            return_exceptions=True,
        )
        for error in refused:
            with pytest.raises(DurabilityRefused, match=words):
                raise error  # pyright: ignore
        assert (await queue.stats()).waiting == 1
        assert await watched.asked("waitaof") == 0
        if server_kind() != "redis":
            await watched.command("CONFIG", "SET", "appendonly", "yes")
            await queue.enqueue("send", durability="fsynced")


async def test_an_unknown_durability_is_refused(watched: Watched):
    """A misspelt durability must not mean a weaker one."""
    words = "durability is 'fsync': it takes none, fsynced or replicated"
    with pytest.raises(InvalidJob, match=words):
        Queue("calls", watched.url, durability="fsync")  # pyright: ignore
    async with quick(watched) as queue:
        with pytest.raises(InvalidJob, match=words):
            await queue.enqueue("send", durability="fsync")  # pyright: ignore
        assert (await queue.stats()).waiting == 0


@WAITAOF
async def test_a_call_survives_a_power_loss(watched: Watched):
    """The append-only file is cut right after the confirmed part. Other jobs of the queue may be lost."""
    async with quick(watched, durability_timeout=5) as queue:
        server = watched.server
        kept = [await queue.enqueue("send", durability="fsynced") for _ in range(2)]
        tail = max((server.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        confirmed = tail.stat().st_size
        lost = await queue.enqueue("send")
        server.kill()
        with tail.open("r+b") as file:
            file.truncate(confirmed)
        server.start()
        assert [(await job.row()).state for job in kept] == ["waiting", "waiting"]
        assert (await queue.stats()).waiting == 2
        assert lost.id not in [job.id for job in kept]
