"""Every error of jobq, caused as users cause it, with its text."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Discard, Queue, Retry, Settings, Snooze, Unique, errors
from jobq.cli.session import one_queue
from jobq.cli.target import load_target
from jobq.engine.model.job import NewJob, Options, Spec, State
from jobq.engine.model.outcome import Snoozed, Throttled, encode_result, judge, put_off
from jobq.engine.queue.late import end_late
from jobq.engine.server import embedded
from jobq.engine.store import route as store_module
from jobq.engine.worker.child_errors import pack, rebuild

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from jobq.engine.store import Store

ID = "0htk3v9c20047qm2x"
CASES: dict[str, tuple[Callable[..., Awaitable[Any]], str]] = {}
"""For each error, a function that causes it, and its text."""


def brings(name: str, text: str) -> Any:
    def register(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        assert name not in CASES
        CASES[name] = (fn, text)
        return fn

    return register


class World:
    """Everything that the cases need."""

    def __init__(self, queue: Queue, admin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue = queue
        self.admin = admin
        self.tmp_path = tmp_path
        self.monkeypatch = monkeypatch

    async def claim(self) -> Any:
        claimed = await self.queue.store.do(self.queue.store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
        assert claimed is not None
        return claimed


@brings("TooManyWaiting", r"job parent 1 may not wait for job 2: 1000 jobs of this worker wait for other jobs already")
async def _(world: World) -> None:
    raise errors.TooManyWaiting("parent 1", "2", 1000)


@brings("JobqError", r"cannot retry all waiting jobs: it takes failed, completed")
async def _(world: World) -> None:
    await world.queue.retry_all(State.WAITING)


@brings("InvalidJob", r"delay is -1: it takes 0 to 316224000 seconds \(ten years\)")
async def _(world: World) -> None:
    await world.queue.enqueue("send", delay=-1)


@brings("UnknownType", "unknown job type 'sned'; this queue serves: read, send")
async def _(world: World) -> None:
    @world.queue.task
    async def send() -> None: ...

    @world.queue.task
    async def read() -> None: ...

    await world.queue.enqueue("sned")


@brings("UnknownRule", "there is no rule 'stripe'; there are: none yet. Set it with queue.set_limit")
async def _(world: World) -> None:
    await world.queue.enqueue("send", limits=["stripe"])


@brings("GroupFull", "group 'a' holds as many jobs as it may: enqueue later, or raise its max_queued with")
async def _(world: World) -> None:
    await world.queue.set_group("a", max_queued=0)
    await world.queue.enqueue("send", group="a")


@brings("PayloadTooLarge", "the payload has 1048577 bytes, the limit is 1048576; store it elsewhere and enqueue a ref")
async def _(world: World) -> None:
    await world.queue.enqueue("send", "x" * (1_048_577 - 2))


@brings(
    "IdempotencyConflict",
    r"this idempotency key belongs to job \w{17}, enqueued with another body; use a new key for a new job",
)
async def _(world: World) -> None:
    await world.queue.submit(NewJob("send", options=Options(priority=1), idempotency_key="k"))
    await world.queue.submit(NewJob("send", options=Options(priority=2), idempotency_key="k"))


@brings("KeyTaken", r"job \w{17} \(waiting\) holds the key 'k'; wait for its end, kill it, or enqueue with another on=")
async def _(world: World) -> None:
    for _ in range(2):
        await world.queue.enqueue("send", unique=Unique(key="k", on="fail"))


@brings("JobIdTaken", "the id 'mine' belongs to another job; give each job an id of its own, or none")
async def _(world: World) -> None:
    await world.queue.enqueue("send", {"to": "ada"}, id="mine")
    await world.queue.enqueue("send", {"to": "grace"}, id="mine")


@brings("InvalidQuery", "cursor 'nonsense' cannot be read: pass the last page's cursor unchanged")
async def _(world: World) -> None:
    await world.queue.page(cursor="nonsense")


@brings("QueueInUse", "has 1 job; force removes it anyway")
async def _(world: World) -> None:
    await world.queue.enqueue("send")
    await world.queue.drop()


@brings("UnknownQueue", "there is no queue 'nope'; there are: real")
async def _(world: World) -> None:
    url = world.queue.store.connection.url
    async with Queue("real", url) as real:
        await real.enqueue("x")
    async with one_queue("nope", Settings(redis_url=url)):
        pass


@brings("ScheduleNotFound", "there is no schedule 'nightly': `jobq schedules ls` or")
async def _(world: World) -> None:
    await world.queue.get_schedule("nightly")


@brings("WebhookNotFound", "there is no webhook 'crm': `jobq webhooks ls` or")
async def _(world: World) -> None:
    await world.queue.get_webhook("crm")


@brings("JobNotFound", f"no job '{ID}': never enqueued, removed, or past its retention")
async def _(world: World) -> None:
    await world.queue.get(ID)


@brings("WrongState", r"cannot remove job \w{17}: it is active, and remove takes .* or failed; kill it first")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send")
    await world.claim()
    await world.queue.remove(job.id)


@brings("JobFailed", r"job \w{17} failed: ValueError: no such mailbox")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send")
    claimed = await world.claim()
    failure = judge(Spec("send", 0, attempts=1), 1, ValueError("no such mailbox"), "w", 1)
    await world.queue.store.do(world.queue.store.fail([job.id, claimed.token, 1, failure.record, ""]))
    await job.result(timeout=5)


@brings("JobExpired", r"job \w{17} failed: Expired: the job did not start within its expires")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send", expires=0.001)
    await asyncio.sleep(0.01)
    await end_late(world.queue)
    await job.result(timeout=5)


@brings("DeadlineExceeded", "the handler snoozed its job beyond the job's deadline: not yet")
async def _(world: World) -> None:
    error = put_off(errors.Snooze(5, "not yet"), 0, left_ms=5000)
    assert isinstance(error, errors.DeadlineExceeded)
    raise stored_as(error, final=True)


@brings("JobKilled", r"job \w{17} failed: Killed: killed by an operator")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send")
    await world.queue.kill(job.id)
    await job.result(timeout=5)


@brings("UnreadableResult", r"job .* completed, but its stored result cannot be read: oops")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send")
    claimed = await world.claim()
    store = world.queue.store
    await store.do(store.complete([job.id, claimed.token, b"oops", ""], []))
    await job.result(timeout=5)


@brings("ResultTimeout", r"job \w{17} had not ended after 0.01 s; it goes on")
async def _(world: World) -> None:
    job = await world.queue.enqueue("send")
    await job.result(timeout=0.01)


@brings("StoreError", "queue 'closed' is not open: use 'async with queue:' or 'await queue.open\\(\\)'")
async def _(world: World) -> None:
    await Queue("closed", "unix:///nowhere").stats()


@brings("StoreUnavailable", "no answer from Redis: .*nowhere")
async def _(world: World) -> None:
    world.monkeypatch.setattr(store_module, "PAUSES", (0.001,))
    await Queue("q", f"unix://{world.tmp_path}/nowhere").open()


@brings("StoreFull", "Redis is at maxmemory and accepts no new jobs; free memory or raise maxmemory")
async def _(world: World) -> None:
    await world.admin.command(b"CONFIG", b"SET", b"maxmemory", 1)
    try:
        await world.queue.enqueue("send")
    finally:
        await world.admin.command(b"CONFIG", b"SET", b"maxmemory", 0)


@brings("StoreRefused", "queue 'new' has layout 99, this jobq knows 1: update jobq, or use another prefix")
async def _(world: World) -> None:
    await world.queue.store.command(b"HSET", b"jobq:{new}:meta", b"layout", 99)
    await Queue("new", world.queue.store.connection).open()


@brings("DurabilityRefused", "durability='fsynced' needs ")
async def _(world: World) -> None:
    try:
        await world.queue.enqueue("send", durability="fsynced")
    finally:
        assert (await world.queue.stats()).waiting == 0


@brings("DurabilityUnavailable", "'replicated' was not confirmed within 20 ms; the jobs are enqueued")
async def _(world: World) -> None:
    connection = world.queue.store.connection
    async with Queue("sure", connection, durability="replicated", durability_timeout=0.02) as queue:
        try:
            await queue.enqueue("send")
        finally:
            assert (await queue.stats()).waiting == 1


@brings("NoServer", "set JOBQ_REDIS_URL|JOBQ_REDIS_URL")
async def _(world: World) -> None:
    world.monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    world.monkeypatch.setenv("PATH", str(world.tmp_path))
    await Queue("q", settings=Settings(data_dir=str(world.tmp_path / "data"))).open()


@brings("TargetError", "there is no module 'no_such_module' here")
async def _(world: World) -> None:
    load_target("no_such_module:queue")


@brings("SettingsError", "JOBQ_LEASE='soon': Expected `float`, got `str`")
async def _(world: World) -> None:
    Settings.from_env({"JOBQ_LEASE": "soon"})


@brings("RemoteError", "of a kind that the worker does not know")
async def _(world: World) -> None:
    class Local(Exception):
        """Only a child process has it."""

    raise rebuild(pack(Local("of a kind that the worker does not know")))


def stored_as(error: errors.JobqError, *, final: bool) -> Exception:
    """An error whose name is stored as the type in the job's record."""
    failure = judge(Spec("t", 0), 1, error, "w")
    assert failure.type == type(error).__name__
    assert (failure.delay is None) is final
    return error


@brings("Timeout", "the run took longer")
async def _(world: World) -> None:
    raise stored_as(errors.Timeout("the run took longer than its timeout of 1 s"), final=False)


@brings("LeaseExpired", "stopped renewing")
async def _(world: World) -> None:
    raise stored_as(errors.LeaseExpired("worker w stopped renewing the lease"), final=False)


@brings("ProcessCrashed", "died")
async def _(world: World) -> None:
    raise stored_as(errors.ProcessCrashed("the child process that ran the handler died"), final=False)


@brings("InvalidPayload", "does not fit")
async def _(world: World) -> None:
    raise stored_as(errors.InvalidPayload("the payload does not fit"), final=True)


@brings("InvalidResult", "the handler's result has 6 bytes, the limit is 5; store it elsewhere and return a reference")
async def _(world: World) -> None:
    try:
        encode_result("four", 5)
    except errors.InvalidResult as error:
        raise stored_as(error, final=True) from None


@brings("OutcomeRefused", "refuses")
async def _(world: World) -> None:
    raise stored_as(errors.OutcomeRefused("Redis refuses to store the job's result"), final=True)


@brings("Unserved", "no handler")
async def _(world: World) -> None:
    raise stored_as(errors.Unserved("this worker has no handler for its type"), final=True)


@brings("Discard", "enough")
async def _(world: World) -> None:
    assert judge(Spec("t", 0), 1, Discard("enough"), "w").delay is None
    raise Discard("enough")


@brings("Retry", "retry requested")
async def _(world: World) -> None:
    assert judge(Spec("t", 0), 1, Retry(delay=5), "w").delay == 5000
    raise Retry(delay=5)


@brings("Snooze", "not paid yet")
async def _(world: World) -> None:
    assert put_off(Snooze(5, "not paid yet"), 0) == Snoozed(5000, "not paid yet")
    raise Snooze(5, "not paid yet")


@brings("TooManySnoozes", "snoozed 1000 times, and its task allows 1000")
async def _(world: World) -> None:
    error = put_off(Snooze(5), 1000)
    assert isinstance(error, errors.TooManySnoozes)
    raise stored_as(error, final=True)


@brings("UnknownBreaker", "type 'sent' has no circuit breaker; there are: send. Declare one with")
async def _(world: World) -> None:
    await world.queue.store.do(world.queue.store.breaker("declare", "send", "0.5 20 30000"))
    await world.queue.reset_breaker("sent")


@brings("RateLimited", "the quota is used up")
async def _(world: World) -> None:
    error = errors.RateLimited("the quota is used up", retry_after=timedelta(seconds=30), scope="queue")
    assert put_off(error, 0) == Throttled(30_000, "queue", "the quota is used up")
    raise error


@brings("TooManyRateLimits", "rate limited 1000 times, and its task allows 1000")
async def _(world: World) -> None:
    error = put_off(errors.RateLimited(retry_after=5), 0, None, 1000)
    assert isinstance(error, errors.TooManyRateLimits)
    raise stored_as(error, final=True)


def test_each_error_has_a_case():
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert set(CASES) == classes


@pytest.mark.parametrize("name", CASES)
async def test_error(name: str, queue: Queue, admin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bring, text = CASES[name]
    kind = getattr(errors, name)
    with pytest.raises(kind, match=text) as caught:
        await bring(World(queue, admin, tmp_path, monkeypatch))
    assert type(caught.value) is kind or name == "JobqError"


async def test_errors_have_attributes_for_programs(queue: Queue):
    """Attributes that a program needs, in addition to the text."""
    job = await queue.enqueue("send")
    with pytest.raises(errors.WrongState) as wrong:
        await queue.promote(job.id)
    assert (wrong.value.job_id, wrong.value.verb, wrong.value.state, wrong.value.allowed) == (
        job.id, "promote", "waiting", ("delayed",),
    )  # fmt: skip
    await queue.kill(job.id)
    with pytest.raises(errors.JobKilled) as killed:
        await job.result()
    assert (killed.value.job_id, killed.value.type, killed.value.message) == (job.id, "Killed", "killed by an operator")
    takes = "waiting or delayed or held or blocked or active"
    with pytest.raises(errors.WrongState, match=f"it is failed, and kill takes {takes}"):
        await queue.kill(job.id)
    await queue.remove(job.id)
    with pytest.raises(errors.JobNotFound) as missing:
        await job.result()
    assert missing.value.job_id == job.id


async def test_a_refused_retry_names_the_job_that_holds_the_key(queue: Queue):
    first = await queue.enqueue("send", key="k")
    await queue.kill(first.id)
    second = await queue.enqueue("send", key="k")
    with pytest.raises(errors.WrongState, match=f"blocked by its key.*job {second.id} holds the same key"):
        await queue.retry(first.id)


EVERY: list[errors.JobqError] = [
    errors.InvalidJob("text"),
    errors.UnknownType("a", ["c", "b"]),
    errors.UnknownRule("a", ["c", "b"]),
    errors.GroupFull("a"),
    errors.UnknownBreaker("a", ["c", "b"]),
    errors.PayloadTooLarge(5, 4),
    errors.IdempotencyConflict("1"),
    errors.JobIdTaken("1"),
    errors.KeyTaken("1", "k", "active"),
    errors.JobNotFound("1"),
    errors.ScheduleNotFound("s"),
    errors.WebhookNotFound("s"),
    errors.WrongState("1", "kill", "failed", ["waiting", "delayed"], "a hint"),
    errors.QueueInUse("q", 1, 2),
    errors.JobFailed("1", "ValueError", "no", "a trace"),
    errors.JobKilled("1", "Killed", "by hand"),
    errors.JobExpired("1", "Expired", "too late"),
    errors.UnreadableResult("1", "it is damaged"),
    errors.ResultTimeout("late"),
    errors.TooManyWaiting("parent 1", "2", 1000),
    errors.StoreUnavailable("away"),
    errors.DurabilityUnavailable("no copy"),
    errors.RemoteError("a.B", "text", "trace", final=True, delay=5),
    errors.Unserved("nobody", invalid=True),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_errors_are_the_same_with_all_attributes_after_their_way_from_a_child_process(error: errors.JobqError):
    again = rebuild(pack(error))
    for other in (again, errors.twin(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.args == error.args
        assert vars(other) == vars(error)
        assert all(type(vars(other)[name]) is type(value) for name, value in vars(error).items())


def test_every_error_with_attributes_is_among_them():
    own = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.JobqError) and "__init__" in vars(kind)
    }
    assert own <= {type(error).__name__ for error in EVERY}
