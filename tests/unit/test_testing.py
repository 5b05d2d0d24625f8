"""jobq.testing: the tools for users' own tests."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Raw, json

from jobq import Backoff, Context, Depends, NewJob, Queue, Retry, State, inject
from jobq.testing import Drained, FakeContext, ManualClock, drain, on_server, override, temporary_server

pytest_plugins = ["pytester"]


async def test_drain_runs_waiting_jobs_and_the_jobs_that_they_enqueue(queue: Queue):
    ran: list[int] = []

    @queue.task
    async def split(n: int) -> None:
        ran.append(n)
        if n > 1:
            await split.enqueue_many([{"n": n // 2}, {"n": n - n // 2}])

    await split.enqueue(n=4)
    assert await drain(queue) == Drained(completed=7)
    assert sorted(ran) == [1, 1, 1, 1, 2, 2, 4]
    assert await drain(queue) == Drained()


async def test_drain_leaves_delayed_jobs_alone_unless_asked(queue: Queue):
    @queue.task(attempts=3, backoff=Backoff(delay=60))
    async def flaky(ctx: Context = inject) -> int:
        if ctx.attempt < 3:
            raise Retry
        return ctx.attempt

    job = await flaky.enqueue()
    await flaky.options(delay=3600).enqueue()
    assert await drain(queue) == Drained(retried=1)
    assert (await queue.stats()).delayed == 2
    assert await drain(queue, include_delayed=True) == Drained(completed=2, retried=3)
    assert await job.result(1) == 3


async def test_drain_counts_failures_and_leaves_unknown_types(queue: Queue, redis_url):
    @queue.task(attempts=1)
    def fails() -> None:
        raise ValueError

    async with Queue("test", redis_url) as other:
        stranger = await other.enqueue("strange")
    await fails.enqueue()
    assert await drain(queue, include_delayed=True) == Drained(failed=1)
    assert (await queue.get(stranger.id)).state is State.DELAYED


async def test_drain_of_several_queues_follows_jobs_from_one_to_the_other(queue: Queue, connection):
    async with Queue("other", connection) as other:

        @other.task
        async def second() -> None: ...

        @queue.task
        async def first() -> None:
            await second.enqueue()

        await first.enqueue()
        assert await drain(queue, other) == Drained(completed=2)


async def test_drain_says_that_jobs_are_held(queue: Queue):
    @queue.task(group="acme")
    async def work() -> None: ...

    await queue.set_group("acme", paused=True)
    await work.enqueue()
    with pytest.raises(TimeoutError, match=r"0 waiting, 1 held, 0 running\); await queue.why\(job_id\) says"):
        await drain(queue, timeout=0.2)


async def test_drain_does_not_wait_for_ever(queue: Queue):
    @queue.task
    async def hangs() -> None:
        await asyncio.Event().wait()

    await hangs.enqueue()
    with pytest.raises(TimeoutError, match=r"within 0\.2 s \(test: 0 waiting, 0 held, 1 running\)"):
        await drain(queue, timeout=0.2)
    await queue.pause()
    with pytest.raises(RuntimeError, match="paused"):
        await drain(queue)


async def test_drain_raises_the_error_of_a_startup_hook(queue: Queue):
    @queue.on_startup
    async def broken() -> None:
        raise LookupError("no database")

    await queue.enqueue("any")
    with pytest.raises(LookupError, match="no database"):
        await drain(queue)


async def test_a_manual_clock_makes_delayed_jobs_due_without_waiting(redis_url):
    clock = ManualClock()
    async with Queue("slow", redis_url, clock=clock) as queue:
        ran: list[int] = []

        @queue.task
        async def remind(n: int) -> None:
            ran.append(n)

        await remind.options(delay=timedelta(days=1)).enqueue(n=1)
        await remind.options(delay=3600).enqueue(n=2)
        await drain(queue)
        assert ran == []
        clock.advance(3600)
        await drain(queue)
        assert ran == [2]
        clock.advance(timedelta(hours=23))
        assert await drain(queue) == Drained(completed=1)
        assert ran == [2, 1]
        (job, _) = (await queue.page(State.COMPLETED)).jobs
        assert job.finished_at == clock()
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


async def test_the_services_own_queue_moves_to_another_server_and_back(redis_url):
    own = Queue("own", "redis://127.0.0.1:1")  # No worker is running.
    clock = ManualClock()

    @own.task
    async def double(n: int) -> int:
        return 2 * n

    async with on_server(own, redis_url, clock=clock) as queue:
        assert queue is own
        job = await double.enqueue(n=21)
        assert await drain(own) == Drained(completed=1)
        assert await job.result(1) == 42
        assert (await job.row()).enqueued_at == clock()
        with pytest.raises(RuntimeError, match="open already"):
            await on_server(own, redis_url).__aenter__()
    assert own.clock is None
    assert vars(own)["_redis"] == "redis://127.0.0.1:1"


async def test_a_temporary_server_is_empty_and_gone_afterwards():
    with temporary_server() as url:
        async with Queue("test", url) as queue:
            await queue.enqueue("any")
            assert (await queue.stats()).waiting == 1
    assert not Path(url.removeprefix("unix://")).exists()  # noqa: ASYNC240 - only one file is checked
    with temporary_server() as url:
        async with Queue("test", url) as queue:
            assert (await queue.stats()).waiting == 0


def test_the_fixtures_exist_with_the_plugin(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest('pytest_plugins = ["jobq.testing_plugin"]')
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from jobq.testing import drain

        @pytest.mark.parametrize("time", [1, 2])
        def test_reminder(jobq_queue, jobq_clock, time):
            @jobq_queue.task
            async def remind() -> str:
                return "now"

            async def scenario():
                async with jobq_queue:
                    assert (await jobq_queue.stats()).completed == 0
                    job = await remind.options(delay=60).enqueue()
                    assert (await drain(jobq_queue)).completed == 0
                    jobq_clock.advance(60)
                    assert (await drain(jobq_queue)).completed == 1
                    assert await job.result(1) == "now"

            asyncio.run(scenario())
        """
    )
    pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=2)


async def test_a_handler_can_be_called_with_a_context_of_the_tests_own(queue: Queue):
    @queue.task
    async def report(rows: int, ctx: Context = inject) -> str:
        ctx.log(f"attempt {ctx.attempt} of {ctx.attempts} for {ctx.metadata['by']}")
        for row in range(rows):
            ctx.progress({"row": row})
        return "lost" if ctx.lost else ctx.id

    context = FakeContext(attempt=2, attempts=5, metadata={"by": "ada"})
    assert await report(2, ctx=context) == context.id
    assert context.logs == ["attempt 2 of 5 for ada"]
    assert context.progresses == [{"row": 0}, {"row": 1}]
    assert await report(0, ctx=FakeContext(metadata={"by": "x"}, lost=True)) == "lost"
    with pytest.raises(TypeError):
        context.progress(object())


def connect() -> str:
    raise AssertionError("a test must not connect")


def nested(inner: Annotated[str, Depends(connect)]) -> str:
    return f"nested {inner}"


async def use(
    run: Annotated[str, Depends(connect)],
    worker: Annotated[str, Depends(connect, scope="worker")],
    other: Annotated[str, Depends(nested)],
) -> list[str]:
    return [run, worker, other]


async def test_a_dependency_can_be_overridden(queue: Queue):
    def stand_in():
        yield "stand-in"

    queue.task(attempts=1)(use)
    with override(connect, lambda: "outer"):
        with override(connect, stand_in):
            job = await queue.enqueue("use")
            assert await drain(queue) == Drained(completed=1)
        assert json.decode(await queue.result(job.id)) == ["stand-in", "stand-in", "nested stand-in"]
        job = await queue.enqueue("use")
        await drain(queue)
        assert json.decode(await queue.result(job.id)) == ["outer", "outer", "nested outer"]
    await queue.enqueue("use")
    assert await drain(queue) == Drained(failed=1)


async def test_a_row_shows_its_payload_progress_and_result(queue: Queue):
    @queue.task
    async def work(text: str, ctx: Context = inject) -> list[int]:
        ctx.progress({"done": 50})
        return [1]

    job = await work.enqueue(text="\u202e<b>" + "x" * 1000)
    await drain(queue)
    shown = repr(await job.row())
    assert shown.startswith(f"JobRow(id='{job.id}', queue='test', type='work', state=<State.COMPLETED: 'completed'>, ")
    assert """payload='{"text":"\\u202e<b>xxx""" in shown
    assert """progress='{"done":50}', result='[1]'""" in shown
    assert "None" not in shown
    assert len(shown) < 700
    assert repr(NewJob("work", Raw(b"[1]"))) == "NewJob(type='work', payload='[1]')"


async def test_a_handle_kills_its_job(queue: Queue):
    job = await queue.enqueue("work")
    await job.kill()
    assert (await job.row()).state is State.FAILED
    assert repr(job) == f"<Job test:{job.id}>"
