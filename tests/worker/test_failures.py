"""The consequences of a failed attempt: another attempt after a delay, or the end with all errors."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hostile import HOSTILE

from jobq import Backoff, Context, Discard, JobFailed, NewJob, Options, Queue, Retry, State, inject
from jobq.engine.version import jobq_version
from jobq.engine.worker.outbox import FAIL_MAX
from jobq.errors import InvalidJob

SOON = Backoff(type="fixed", delay=0.005, jitter=0)


async def test_a_job_without_attempts_left_fails_and_keeps_the_error_of_each(queue: Queue, start, logs):
    @queue.task(attempts=3, backoff=SOON)
    async def flaky(ctx: Context = inject) -> None:
        raise ValueError(f"attempt {ctx.attempt}")

    await start()
    job = await flaky.enqueue()
    with pytest.raises(JobFailed, match="ValueError: attempt 3") as failed:
        await job.result(5)
    assert failed.value.traceback
    row = await job.row()
    assert (row.state, row.attempts_made) == (State.FAILED, 3)
    assert [(error.attempt, error.type, error.message) for error in row.errors] == [
        (n, "ValueError", f"attempt {n}") for n in (1, 2, 3)
    ]
    for error in row.errors:
        assert error.traceback is not None
        assert "test_failures.py" in error.traceback
        assert "jobq/engine" not in error.traceback
        assert error.worker
    lines = logs.all("failed in attempt")
    assert [(line.job_id, line.queue, line.attempt, line.attempts, line.error) for line in lines] == [
        (job.id, "test", n, 3, "ValueError") for n in (1, 2, 3)
    ]
    assert [line.retry_in_ms for line in lines] == [5, 5, None]
    # The message alone must be enough, because a service's own format may show nothing else.
    assert [line.levelname for line in lines] == ["WARNING", "WARNING", "ERROR"]
    assert lines[0].getMessage() == (
        f"Job flaky {job.id} failed in attempt 1 of 3 and runs again in 0.005 s: ValueError: attempt 1"
    )
    first, *rest = lines[2].getMessage().splitlines()
    assert first == f"Job flaky {job.id} failed in attempt 3 of 3 and does not run again: ValueError: attempt 3"
    assert rest[0] == "    Traceback (most recent call last):"
    assert "test_failures.py" in rest[1]
    assert rest[-1] == "    ValueError: attempt 3"


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_hostile_exception_ends_its_run_and_leaves_nothing_active(queue: Queue, start, kind, until):
    """Even if the conclusion of a run raises, no lease is renewed for ever, and the only slot is freed."""

    @queue.task(name="async", attempts=1)
    async def coroutine(which: str) -> None:
        raise HOSTILE[which]()

    @queue.task(name="thread", attempts=1)
    def thread(which: str) -> None:
        raise HOSTILE[which]()

    @queue.task
    async def fine() -> int:
        return 1

    worker = await start(concurrency=1)
    jobs = [await queue.enqueue(kind, {"which": which}) for which in HOSTILE]
    assert await (await fine.enqueue()).result(20) == 1
    await until(lambda: _counts(queue, failed=len(jobs), active=0))
    for job in jobs:
        row = await job.row()
        assert (row.state, row.attempts_made, len(row.errors)) == (State.FAILED, 1, 1)
    assert worker.running == 0


async def test_a_later_attempt_completes_the_job_and_the_errors_stay_readable(queue: Queue, start):
    @queue.task(backoff=SOON)
    async def third_time_lucky(ctx: Context = inject) -> int:
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return ctx.attempt

    await start()
    job = await third_time_lucky.enqueue()
    assert await job.result(5) == 3
    row = await job.row()
    assert (row.state, row.attempts_made, len(row.errors)) == (State.COMPLETED, 3, 2)


async def test_tracebacks_of_threads_start_at_the_handler(queue: Queue, start):
    @queue.task(attempts=1)
    def sync() -> None:
        raise ValueError("in a thread")

    await start()
    with pytest.raises(JobFailed) as failed:
        await (await sync.enqueue()).result(5)
    trace = failed.value.traceback
    assert trace is not None
    assert "test_failures.py" in trace.splitlines()[1]


async def test_backoff_is_the_time_until_the_next_attempt(queue: Queue, start, until):
    @queue.task(attempts=3, backoff=Backoff(type="exponential", delay=60, jitter=0))
    async def fails() -> None:
        raise RuntimeError

    await start()
    job = await fails.enqueue()

    async def put_off(attempts: int) -> bool:
        row = await job.row()
        return row.state is State.DELAYED and row.attempts_made == attempts

    await until(lambda: put_off(1))
    row = await job.row()
    assert row.run_at is not None
    assert row.run_at - row.errors[0].at == pytest.approx(60_000, abs=500)
    await queue.promote(job.id)
    await until(lambda: put_off(2))
    row = await job.row()
    assert row.run_at is not None
    assert row.run_at - row.errors[1].at == pytest.approx(120_000, abs=500)


@pytest.mark.parametrize(
    ("delay", "ms"),
    [
        (40, 40_000),
        (0.25, 250),
        (timedelta(minutes=2), 120_000),
        (-5, 0),
        (1e300, 10 * 366 * 24 * 3600 * 1000),
        (None, 7_000),
        (float("inf"), 7_000),
        (float("nan"), 7_000),
        ("soon", 7_000),
    ],
    ids=str,
)
async def test_retry_sets_its_delay_and_an_unusable_delay_means_the_backoff(
    queue: Queue, start, until, logs, delay, ms
):
    @queue.task(attempts=2, backoff=Backoff(type="fixed", delay=7, jitter=0))
    async def again(ctx: Context = inject) -> None:
        if ctx.attempt == 1:
            raise Retry("later", delay=delay)

    await start()
    job = await again.enqueue()
    await until(lambda: logs.all("failed in attempt"))
    assert logs.one("failed in attempt", "WARNING").retry_in_ms == ms
    assert (await job.row()).state in (State.DELAYED, State.ACTIVE, State.COMPLETED)


async def test_discard_fails_at_once(queue: Queue, start):
    @queue.task(attempts=9)
    async def hopeless() -> None:
        raise Discard("no such customer")

    await start()
    job = await hopeless.enqueue()
    with pytest.raises(JobFailed, match="no such customer"):
        await job.result(5)
    row = await job.row()
    assert (row.state, row.attempts_made, row.errors[0].type) == (State.FAILED, 1, "Discard")


PAYLOADS = [
    ({"to": 1}, "Expected `str`"),
    ({}, "missing required field `to`"),
    ([1], "Expected `object`"),
]
"""Arguments that another version's handler of ``send(to: str)`` may take, and what this version answers."""


async def test_a_payload_that_another_version_may_read_goes_back_uncharged(queue: Queue, redis_url, start, until, logs):
    # It has no types, so it enqueues anything that the other version would.
    async with Queue("test", redis_url) as before:
        jobs = [await before.enqueue("send", payload, attempts=1) for payload, _ in PAYLOADS]

        @queue.task
        async def send(to: str) -> None:
            raise AssertionError("it cannot read them")

        await start()

        async def handed_back() -> bool:
            return all([(await job.row()).unserved for job in jobs])

        await until(handed_back)
        for job, (_, says) in zip(jobs, PAYLOADS, strict=True):
            row = await job.row()
            assert (row.state in (State.DELAYED, State.WAITING, State.ACTIVE), row.attempts_made, row.errors) == (
                True, 0 + (row.state is State.ACTIVE), [],
            )  # fmt: skip
            line = next(line for line in logs.all("handed back") if line.job_id == job.id)
            assert f"Job send {job.id} was handed back" in line.getMessage()
            assert says in line.getMessage()

    async with Queue("test", redis_url) as other:

        @other.task(name="send")
        async def other_send(to: Any = None) -> Any:
            return to

        await start(other)

        async def completed() -> bool:
            for job in jobs:
                if (await queue.get(job.id)).state is State.DELAYED:
                    await queue.promote(job.id)
            return (await queue.stats()).completed == 2  # The payload [1] fits neither version.

        await until(completed)


@pytest.mark.parametrize("payload", [payload for payload, _ in PAYLOADS], ids=str)
async def test_a_job_that_no_worker_can_read_fails_in_the_end_and_names_both_versions(redis_url, start, payload):
    seen: list[str] = []
    async with Queue("test", redis_url) as before:
        job = await before.enqueue("send", payload, attempts=5)
        strange = await before.enqueue("strange", attempts=5)
    async with Queue("test", redis_url, unserved_for=0) as queue:

        @queue.task
        async def send(to: str, subject: str = "") -> None: ...

        @queue.middleware
        async def watch(context, call_next):
            try:
                return await call_next()
            except Exception as error:
                seen.append(f"{context.type}: {type(error).__name__}")
                raise

        worker = await start(queue)
        with pytest.raises(JobFailed, match="does not fit send's signature") as failed:
            await queue.result(job.id, timeout=5)
        assert failed.value.type == "InvalidPayload"
        fields = ", ".join(payload) if isinstance(payload, dict) else ""
        assert f"it has the fields {fields or 'none'}, the signature has to, subject" in failed.value.message
        assert f"the last one was {worker.name} with jobq {jobq_version()}" in failed.value.message
        assert (await queue.get(job.id)).attempts_made == 1
        with pytest.raises(JobFailed, match=r"no handler for its type\. No worker could run the job for 0 h") as failed:
            await queue.result(strange.id, timeout=5)
        assert failed.value.type == "Unserved"
    assert sorted(seen) == ["send: InvalidPayload", "strange: Unserved"], "middleware is told"


async def test_an_optional_argument_of_another_version_is_ignored_and_logged_once(queue: Queue, redis_url, start, logs):
    @queue.task
    async def send(to: str) -> str:
        return to

    async with Queue("test", redis_url) as newer:
        jobs = [await newer.enqueue("send", {"to": "a", "locale": "en"}) for _ in range(3)]
        await start()
        assert [await job.result(5) for job in jobs] == ["a"] * 3
    line = logs.one("A field of the payload is ignored", "WARNING").getMessage()
    assert "`locale`" in line
    assert f"The first such job is send {jobs[0].id}" in line


async def test_unknown_fields_are_refused_at_enqueue_unless_the_queue_ignores_them(queue: Queue, redis_url):
    async def send(to: str) -> None: ...

    queue.task(send)
    with pytest.raises(InvalidJob, match="unknown field `locale`"):
        await queue.enqueue("send", {"to": "a", "locale": "en"})
    async with Queue("test", redis_url, unknown_fields="ignore") as lenient:
        lenient.task(send)
        await lenient.enqueue("send", {"to": "a", "locale": "en"})
        with pytest.raises(InvalidJob, match="missing required field `to`"):
            await lenient.enqueue("send", {"locale": "en"})
    with pytest.raises(InvalidJob, match="unknown_fields is 'forbid': it takes 'refuse' or 'ignore'"):
        Queue("test", unknown_fields="forbid")  # type: ignore[arg-type]


async def _rewrite(queue: Queue, job_id: str, old: bytes, new: bytes) -> None:
    """Change the row of a job to one that another version of jobq would have written."""
    key = queue.store.keys["jobs"]
    raw = await queue.store.command(b"HGET", key, job_id)
    assert old in raw
    await queue.store.command(b"HSET", key, job_id, raw.replace(old, new))


async def test_a_row_with_fields_of_a_newer_jobq_runs(queue: Queue, start):
    @queue.task(backoff=Backoff(delay=0.007))
    async def fine() -> int:
        return 1

    job = await fine.enqueue()
    await _rewrite(queue, job.id, b'"backoff":{', b'"tags":["x"],"backoff":{"factor":3,')
    await start()
    assert await job.result(5) == 1


async def test_a_row_that_a_newer_jobq_may_read_goes_back_even_after_its_lease_ran_out(
    queue: Queue, start, until, logs
):
    @queue.task
    async def fine() -> None: ...

    job = await queue.enqueue("fine", backoff=Backoff(delay=0.007), attempts=1)
    await _rewrite(queue, job.id, b'"backoff":{', b'"backoff":{"type":"linear",')
    # Its worker of the newer version dies.
    claim = queue.store.claim(1, 1, "newer", "newer:0", 1, repeated=False)
    await queue.store.do(claim)
    await start(lease=0.2)
    await until(lambda: logs.all("this version of jobq cannot read the job's row", "WARNING"))
    row = await queue.get(job.id)
    assert (row.errors, row.state is State.FAILED) == ([], False)


async def test_an_unreadable_row_ends_in_failed_and_affects_no_other_job(queue: Queue, connection, start, until):
    @queue.task
    async def fine() -> int:
        return 1

    await queue.pause()
    job = await fine.enqueue()
    key = queue.store.keys["jobs"]
    await queue.store.command(b"HSET", key, job.id, b"\xff{not json")
    await start()
    await queue.resume()
    await until(lambda: _counts(queue, failed=1))
    assert await (await fine.enqueue()).result(5) == 1


async def _counts(queue: Queue, **wanted: int) -> bool:
    stats = await queue.stats()
    return all(getattr(stats, name) == count for name, count in wanted.items())


async def test_long_errors_are_cut_and_passwords_in_urls_hidden(queue: Queue, start):
    @queue.task(attempts=1)
    async def talkative() -> None:
        raise RuntimeError("redis://user:hunter2@host:6379/0 " + "x" * 50_000)

    await start()
    job = await talkative.enqueue()
    with pytest.raises(JobFailed) as failed:
        await job.result(5)
    assert "hunter2" not in failed.value.message
    assert "***" in failed.value.message
    assert len(failed.value.message) < 3_000
    assert failed.value.traceback is not None
    assert len(failed.value.traceback) < 10_000
    assert "hunter2" not in failed.value.traceback


async def test_text_that_utf8_cannot_hold_is_kept_readable(queue: Queue, start):
    @queue.task(attempts=1)
    async def surrogate(ctx: Context = inject) -> None:
        ctx.log("lone \ud800")
        raise RuntimeError("lone \ud800")

    await start()
    job = await surrogate.enqueue()
    with pytest.raises(JobFailed, match=r"lone \\ud800"):
        await job.result(5)
    assert (await queue.logs(job.id))[0].message.startswith("lone ")


async def test_failures_are_logged_once_each_and_transitions_at_debug(queue: Queue, start, logs):
    @queue.task(attempts=2, backoff=SOON)
    async def flaky(ctx: Context = inject) -> None:
        if ctx.attempt == 1:
            raise RuntimeError("once")

    await start()
    job = await flaky.enqueue()
    await job.result(5)
    mine = [
        (record.levelno, record.getMessage()) for record in logs.all("") if getattr(record, "job_id", None) == job.id
    ]
    assert mine[0] == (logging.DEBUG, f"Job {job.id} was enqueued")
    for said in (
        f"Job {job.id} was claimed",
        f"Outcome of job {job.id}: retried",
        f"Outcome of job {job.id}: completed",
    ):
        assert (logging.DEBUG, said) in mine
    warnings = [message for level, message in mine if level == logging.WARNING]
    assert warnings == [f"Job flaky {job.id} failed in attempt 1 of 2 and runs again in 0.005 s: RuntimeError: once"]


async def test_a_forged_line_in_an_error_text_does_not_start_a_line_of_the_log(queue: Queue, start, logs):
    @queue.task(attempts=1)
    async def forges() -> None:
        raise RuntimeError("x\n12:00 ERROR all is lost")

    await start()
    with pytest.raises(JobFailed):
        await (await forges.enqueue()).result(5)
    lines = logs.one("failed in attempt", "ERROR").getMessage().splitlines()
    assert all(line.startswith("    ") for line in lines[1:])
    assert lines[0].endswith("RuntimeError: x 12:00 ERROR all is lost")


async def test_options_reach_the_run(queue: Queue, start):
    @queue.task
    async def fails() -> None:
        raise RuntimeError

    await start()
    accepted = await queue.submit(NewJob("fails", msgspec.Raw(b"{}"), Options(attempts=2, backoff=SOON.stored())))
    with pytest.raises(JobFailed):
        await queue.result(accepted.id, timeout=5)
    assert (await queue.get(accepted.id)).attempts_made == 2


async def test_many_simultaneous_failures_are_sent_in_small_trips(queue: Queue, start, gate, monkeypatch):
    """Each failure moves the earlier errors of its job. Hundreds in one script would hold Redis for tens of
    milliseconds."""
    sizes: list[int] = []
    reschedule = queue.store.reschedule

    def spy(jobs: list[Any], *counts: Any) -> Any:
        sizes.append(len(jobs) // 5)
        return reschedule(jobs, *counts)

    monkeypatch.setattr(queue.store, "reschedule", spy)

    @queue.task(attempts=2, backoff=SOON)
    async def fails(ctx: Context = inject) -> int:
        await gate.passing()
        if ctx.attempt == 1:
            raise RuntimeError
        return ctx.attempt

    jobs = await fails.enqueue_many([{} for _ in range(120)])
    await start(concurrency=200)
    for _ in jobs:
        await gate.arrival()
    gate.open()
    assert [await job.result(10) for job in jobs] == [2] * 120
    assert sum(sizes) == 120
    assert max(sizes) == FAIL_MAX


async def test_a_task_says_which_errors_are_retried_and_when(queue: Queue, start, until, logs):
    @queue.task(attempts=None, discard_on=(ValueError,), backoff=lambda attempt, _: 0.001 * attempt)
    async def work(ctx: Context = inject) -> None:
        if ctx.attempt < 5:
            raise ConnectionError
        raise ValueError("never again")

    await start(queue)
    job = await work.enqueue()
    with pytest.raises(JobFailed, match="never again"):
        await job.result(timeout=10)
    row = await job.row()
    assert (row.attempts, row.attempts_made, row.backoff) == (None, 5, None)
    assert logs.one("failed in attempt 5 (no limit) and does not run again", "ERROR")


async def test_a_row_without_a_limit_of_attempts_keeps_a_bounded_history(queue: Queue, start):
    @queue.task(attempts=None, backoff=Backoff("fixed", 0))
    async def work(ctx: Context = inject) -> int:
        if ctx.attempt <= 60:
            raise ValueError("x" * 1900)
        return ctx.attempt

    await start(queue)
    job = await work.enqueue()
    assert await job.result(timeout=30) == 61
    errors = (await job.row()).errors
    assert errors[-1].attempt == 60
    assert sum(len(msgspec.json.encode(one)) + 1 for one in errors) <= 65_536
    assert len(errors) < 40
