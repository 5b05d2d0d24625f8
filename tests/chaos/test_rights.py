"""The least rights of a Redis user for jobq, as in docs/reliability.md. Also: its password is never shown."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

import pytest

from jobq import Backoff, Connection, Context, Discard, Queue, State, Worker, inject
from jobq.engine.store.packing import pack
from jobq.errors import JobFailed, StoreError, StoreRefused
from tests.conftest import documented_rules

if TYPE_CHECKING:
    from tests.chaos.conftest import NewServer
    from tests.conftest import Server

PASSWORD = "s3cret-p@ss/word"
QUOTED = "s3cret-p%40ss%2Fword"


async def make_user(server: Server, *rules: str) -> str:
    """Create a user and return its URL."""
    connection = Connection(server.admin_url)
    (answer,) = await connection.trip(pack(("ACL", "SETUSER", "jobq", "on", f">{PASSWORD}", *rules)), 1)
    await connection.aclose()
    assert answer == b"OK", answer
    return f"redis://jobq:{QUOTED}@127.0.0.1:{server.port}"


async def test_every_verb_with_the_documented_rights(new_server: NewServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is refused, and nothing is logged for that reason."""
    server = new_server("--appendonly", "yes")
    url = await make_user(server, *documented_rules())
    queue = Queue("rights", url)
    started = asyncio.Event()

    @queue.task(attempts=2, backoff=Backoff("fixed", 0))
    async def work(how: str, ctx: Context = inject) -> str:
        ctx.progress(1)
        ctx.log("here")
        if how == "flaky" and ctx.attempt == 1:
            raise ValueError("once")
        if how == "doomed":
            raise Discard("never")
        if how == "long":
            started.set()
            await asyncio.Event().wait()
        return how

    async with queue, Worker(queue, lease=0.3, grace=0.05) as worker:
        worker.start()
        for how in ("ok", "flaky"):
            assert await (await work.options(key=how, key_ttl=60).enqueue(how)).result(timeout=5) == how
        doomed = await work.enqueue("doomed")
        with pytest.raises(JobFailed):
            await doomed.result(timeout=5)
        long = await work.enqueue("long")
        await asyncio.wait_for(started.wait(), 5)
        await queue.kill(long.id)
        await queue.pause()
        later = await work.options(delay=60, lifo=True).enqueue("ok")
        await queue.reprioritise(later.id, 5)
        await queue.promote(later.id)
        await queue.remove(later.id)
        await queue.retry(doomed.id)
        await queue.resume()
        unknown = await Queue.enqueue(queue, "work", {"how": "ok"}, priority=-1)
        await unknown.result(timeout=5)
        assert await queue.logs(unknown.id)
        assert (await queue.page(State.COMPLETED)).jobs
        assert (await queue.stats()).completed_total >= 3
        assert await queue.workers()
        assert await queue.queues() == ["rights"]
        await queue.ready()
        assert await queue.retry_all(State.FAILED) >= 0
        assert await queue.remove_all(State.COMPLETED) >= 0
        other = Worker(queue, lease=0.3)  # This includes sweeps and trims.
        async with other:
            other.start()
            await asyncio.wait_for((await work.enqueue("ok")).result(), 5)
    async with queue:
        await queue.drop(force=True)
        assert await queue.queues() == []
    refused = [str(record.__dict__.get("error")) for record in caplog.records if "error" in record.__dict__]
    assert not [text for text in refused if "NOPERM" in text or "permission" in text], refused


async def test_the_rights_end_at_the_prefix(new_server: NewServer) -> None:
    """Other keys of the same server cannot be reached."""
    url = await make_user(new_server(), *documented_rules())
    with pytest.raises(StoreRefused, match="refuses this user"):
        await Queue("rights", url, prefix="other").open()


@pytest.mark.parametrize(
    "url", ["redis://jobq:{0}@127.0.0.1:{1}", "redis://:{0}@127.0.0.1:{1}", "redis://127.0.0.1:{1}?password={0}"]
)
async def test_passwords_are_never_shown(
    new_server: NewServer, url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Passwords are not in errors, reprs, tracebacks or logs, even if they are wrong or the server is away."""
    server = new_server()
    connection = Connection(server.admin_url)
    await connection.trip(pack(("CONFIG", "SET", "requirepass", "another")), 1)
    await connection.aclose()
    for port in (server.port, 1):
        connection = Connection(url.format(QUOTED, port), timeout=0.5)
        with pytest.raises(StoreError) as caught:
            await Queue("secret", connection).open()
        shown = "".join(traceback.format_exception(caught.value)) + repr(connection) + caplog.text
        shown += "".join(str(record.__dict__) for record in caplog.records) + "".join(capfd.readouterr())
        assert PASSWORD not in shown
        assert QUOTED not in shown
        await connection.aclose()


async def test_a_channel_that_is_refused_leaves_the_others_heard(
    new_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The user may listen to one of three queues. Its kills are heard at once, and the other queues work."""
    server = new_server("--appendonly", "yes")
    rules = [rule for rule in documented_rules() if not rule.startswith("&")]
    url = await make_user(server, *rules, "resetchannels", "&jobq:{heard}:control")
    started, ended = asyncio.Event(), asyncio.Event()
    heard, *others = [Queue(name, url) for name in ("heard", "unheard", "silent")]

    @heard.task
    async def long() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    for queue in others:

        @queue.task
        async def short() -> int:
            return 1

    # Without the channel the worker would hear of the kill at the next renewal, in a minute.
    async with heard, others[0], others[1], Worker(heard, *others, lease=180) as worker:
        worker.start()
        for queue in others:
            assert await (await queue.enqueue("short")).result(timeout=20) == 1
        job = await long.enqueue()
        await asyncio.wait_for(started.wait(), 20)
        await heard.kill(job.id)
        await asyncio.wait_for(ended.wait(), 20)
    said = [record.getMessage() for record in caplog.records if "may not listen" in record.getMessage()]
    assert sorted(message.split(",")[0] for message in said) == [
        "This user may not listen to the channel jobq:{silent}:control",
        "This user may not listen to the channel jobq:{unheard}:control",
    ]
