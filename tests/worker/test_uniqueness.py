"""``unique=``: the options, the key, and what users see of the table with a worker that runs the jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from jobq import (
    InvalidJob,
    KeyTaken,
    NewJob,
    Options,
    Queue,
    State,
    StoredUnique,
    Unique,
    WrongState,
    debounce,
    latest,
    singleton,
    throttle,
)
from jobq.engine.model.unique import TABLE, check_unique, key_of
from jobq.errors import JobKilled

WHILE: dict[str, dict[str, Any]] = {
    "queued": {"while_": "queued"},
    "running": {"while_": "running"},
    "unfinished": {"while_": "unfinished"},
    "ended": {"while_": "unfinished", "for_": 60},
    "enqueued": {"for_": "1m"},
}
CONFLICTS = ("return", "fail", "replace", "replace_all", "extend", "keep_last", "kill_running")


@pytest.mark.parametrize("on", CONFLICTS)
@pytest.mark.parametrize("mode", WHILE)
def test_a_combination_that_could_never_act_is_refused(mode: str, on: Any):
    more: dict[str, Any] = {"delay": 1} if on == "extend" else {}
    if on in TABLE[mode]:
        assert Unique(**WHILE[mode], on=on, **more).stored().on == on
    else:
        with pytest.raises(InvalidJob, match=r"unique\.on is .*: with .* it takes return, fail"):
            Unique(**WHILE[mode], on=on, **more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"while_": "done"}, "unique.while is 'done': it takes queued, running or unfinished"),
        ({"key": ""}, "unique.key: it takes 1 to 512 bytes"),
        ({"key": "a\nb"}, "without control characters"),
        ({"key": 7}, "unique.key is 7: it takes a text"),
        ({"key": "k", "by": "user"}, "both make the key: give one of them"),
        ({"by": (7,)}, "unique.by has 7: it takes names of arguments"),
        ({"by": tuple(f"a{n}" for n in range(17))}, "unique.by has 17 arguments: it takes 16 at most"),
        ({"for_": 0}, "unique.for_ is 0: it takes 0.001 to"),
        ({"for_": "soon"}, "unique.for_: 'soon' is not a time"),
        ({"for_": 5, "while_": "queued"}, "unique.for does not go with while='queued'"),
        ({"delay": 5}, "unique.delay does not go with on='return'"),
        ({"on": "extend"}, "'extend' without a delay: say by how much"),
        ({"on": "replace", "max_wait": 5}, "unique.max_wait is given without delay"),
        ({"on": "replace", "delay": 6, "max_wait": 5}, "give a max_wait that is not smaller than delay"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_at_once(given: dict[str, Any], message: str):
    with pytest.raises(InvalidJob, match=message):
        Unique(**given)


def test_rules_that_programs_make_by_hand_are_checked_too(queue: Queue):
    with pytest.raises(InvalidJob, match="it takes 1 to"):
        check_unique(StoredUnique(for_=True))
    with pytest.raises(InvalidJob, match="unique is 5: it takes Unique"):
        queue.new("x", unique=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidJob, match="key and unique are both given"):
        queue.new("x", key="k", unique=singleton())


def test_times_are_seconds_timedeltas_or_texts():
    for five in (300, timedelta(minutes=5), "5m"):
        assert debounce(five, max_wait="1h").stored() == StoredUnique(
            while_="queued", on="replace", delay=300_000, max_wait=3_600_000
        )
    assert throttle("500ms").stored() == StoredUnique(for_=500)


def test_by_is_checked_at_import(queue: Queue):
    with pytest.raises(InvalidJob, match="by='usr' names no argument of 'send'; there are user, kind"):

        @queue.task(unique=singleton(by="usr"))
        async def send(user: int, kind: str = "a") -> None: ...

    @queue.task(name="other")
    async def other(user: int) -> None: ...

    with pytest.raises(InvalidJob, match="by='usr' names no argument"):
        other.options(unique=singleton(by="usr"))
    with pytest.raises(InvalidJob, match="by='usr' names no argument"):
        queue.new("other", {"user": 1}, unique=singleton(by="usr"))


def test_the_key_of_a_job_can_be_seen(queue: Queue):
    @queue.task(unique=singleton(by=("user", "kind")))
    async def send(user: Any, kind: str = "a") -> None: ...

    @queue.task
    async def plain() -> None: ...

    assert send.unique_key(7) == 'send:[7,"a"]' == send.unique_key(user=7, kind="a")
    assert send.unique_key("7") == 'send:["7","a"]', "another value"
    assert send.unique_key({"b": 1, "a": 2}) == send.unique_key({"a": 2, "b": 1})
    assert send.unique_key("a:b", "c") != send.unique_key("a", "b:c")
    assert (send.unique_key("x" * 600) or "").startswith("~")
    assert send.unique_key("x" * 600) != send.unique_key("y" * 600)
    assert send.unique_key("\x7f\n") != send.unique_key("\x7f")
    assert queue.unique_key("send", {"user": 7}, unique=singleton()) == 'send:[7,"a"]'
    assert queue.unique_key("send", {"user": 7}, unique=Unique(key="send")) == "send"
    assert queue.unique_key("send", {"user": 7}, key="mine") == "mine"
    assert plain.unique_key() is None


def test_a_producer_without_the_code_needs_the_argument():
    """A misspelt name would give all jobs one key."""
    unique = Unique(by="usr").stored()
    with pytest.raises(InvalidJob, match=r"the payload has no 'usr', which unique\.by names; it has user"):
        key_of(unique, "send", msgspec.Raw(b'{"user":7}'))
    with pytest.raises(InvalidJob, match="the payload has no arguments to make a key of"):
        key_of(unique, "send", msgspec.Raw(b"[7]"))


async def test_a_duplicate_names_the_holder_its_state_and_what_was_done(queue: Queue):
    first = await queue.enqueue("x", {"n": 1}, unique=debounce("1h"))
    assert (first.duplicate, first.state, first.done) == (False, None, None)
    again = await queue.enqueue("x", {"n": 2}, unique=debounce("1h"))
    assert (again.id, again.duplicate, again.state, again.done) == (first.id, True, State.DELAYED, "replaced")
    row = await first.row()
    assert (bytes(row.payload), row.key) == (b'{"n":2}', "x")
    dropped = await queue.enqueue("x", {"n": 3}, unique=singleton())
    assert (dropped.id, dropped.state, dropped.done) == (first.id, State.DELAYED, "returned")
    with pytest.raises(KeyTaken) as taken:
        await queue.enqueue("x", unique=Unique(on="fail"))
    assert (taken.value.job_id, taken.value.key, taken.value.state) == (first.id, "x", "delayed")
    assert (await queue.stats()).duplicates_total == 3


async def test_in_a_bulk_the_others_go_on(queue: Queue):
    await queue.enqueue("x", key="taken")
    taken = Unique(key="taken", on="fail")
    rows = [queue.new("x", {"n": n}, **({"unique": taken} if n == 1 else {})) for n in range(3)]
    with pytest.raises(KeyTaken):
        await queue.enqueue_many(rows)
    assert (await queue.stats()).waiting == 3


async def test_the_order_of_a_bulk_stays_whatever_has_a_key(queue: Queue):
    rows = [queue.new("x", {"n": n}, **({"key": f"k{n}"} if n % 3 else {})) for n in range(400)]
    await queue.enqueue_many(rows)
    found = [msgspec.json.decode(row.payload)["n"] for row in (await queue.page(State.WAITING, limit=400)).jobs]
    assert found == list(range(400))


async def test_latest_runs_the_newest_after_the_one_that_runs(queue: Queue, start: Any, gate: Any):
    seen: list[int] = []

    @queue.task(unique=latest())
    async def sync(n: int) -> int:
        seen.append(n)
        await gate.passing()
        return n

    await start(concurrency=5)
    first = await sync.enqueue(1)
    await gate.arrival()
    waiting = await sync.enqueue(2)
    assert not waiting.duplicate
    for n in range(3, 6):
        kept = await sync.enqueue(n)
        assert (kept.id, kept.state, kept.done) == (waiting.id, State.BLOCKED, "replaced")
    assert seen == [1]
    gate.open()
    assert (await first.result(10), await waiting.result(10)) == (1, 5)
    assert seen == [1, 5]


async def test_kill_running_stops_the_handler_and_runs_the_new_job(queue: Queue, start: Any, gate: Any):
    @queue.task(unique=Unique(while_="running", on="kill_running"))
    async def render(n: int) -> int:
        if n == 1:
            await gate.passing()
        return n

    await start()
    first = await render.enqueue(1)
    await gate.arrival()
    second = await render.enqueue(2)
    assert await second.result(10) == 2
    with pytest.raises(JobKilled, match="killed by the enqueue of job"):
        await first.result(10)


async def test_a_retry_of_a_job_whose_key_is_taken_names_the_holder_and_the_others_go_on(queue: Queue):
    first = [await queue.enqueue("x", {"n": n}, unique=Unique(key=f"k{n}", while_="queued")) for n in range(2)]
    for job in first:
        await queue.kill(job.id)
    rival = await queue.enqueue("x", unique=Unique(key="k0"))
    with pytest.raises(WrongState, match=f"job {rival.id} holds the same key"):
        await queue.retry(first[0].id)
    assert await queue.retry_all() == 1
    assert (await first[1].row()).state is State.WAITING


async def test_a_parked_job_holds_a_key_of_queued_jobs(queue: Queue, start: Any, until: Any):
    """No worker knows its type."""

    @queue.task
    async def known() -> None: ...

    await start()
    async with Queue(queue.name, queue.store.connection) as producer:
        job = await producer.enqueue("unknown", unique=Unique(key="k", while_="queued"))
        await until(lambda: _unserved(queue, job.id), "the job to be parked")
        again = await producer.enqueue("unknown", unique=Unique(key="k", while_="queued"))
        assert (again.id, again.state) == (job.id, State.DELAYED)


async def _unserved(queue: Queue, job_id: str) -> bool:
    return (await queue.get(job_id)).unserved > 0


async def test_producers_without_the_code_use_the_published_rule(queue: Queue, start: Any, until: Any):
    @queue.task(unique=debounce("1h", by="user"))
    async def index(user: int = 3, text: str = "") -> None: ...

    await start()
    async with Queue(queue.name, queue.store.connection) as producer:
        await until(lambda: _published(producer), "the worker to publish")
        first = await producer.enqueue("index", {"text": "a"})
        again = await producer.enqueue("index", {"user": 3, "text": "b"})
        assert (again.id, again.done) == (first.id, "replaced")
        mine = await producer.enqueue("index", {"user": 3}, key="mine")
        assert not mine.duplicate
        assert (await mine.row()).key == "mine"


async def _published(queue: Queue) -> bool:
    return bool(await queue.types())


async def test_a_key_of_one_call_replaces_the_rule_of_the_task(queue: Queue):
    @queue.task(unique=singleton())
    async def tidy(n: int = 0) -> None: ...

    first = await tidy.enqueue()
    assert (await tidy.enqueue()).id == first.id
    assert not (await tidy.options(key="other").enqueue()).duplicate
    assert not (await tidy.options(unique=None).enqueue()).duplicate
    with pytest.raises(InvalidJob, match="several jobs cannot have one key"):
        await tidy.options(unique=Unique(key="k")).enqueue_many([{}, {}])


async def test_a_rule_of_one_call_keeps_the_key_of_the_task(queue: Queue, start: Any, until: Any):
    @queue.task(unique=debounce("1h", by="user"))
    async def index(user: int = 3, text: str = "") -> None: ...

    @queue.task(key="nightly")
    async def tidy() -> None: ...

    first = await index.enqueue()
    with pytest.raises(KeyTaken) as taken:
        await index.options(unique=Unique(on="fail")).enqueue(user=3)
    assert taken.value.key == "index:[3]"
    assert queue.unique_key("index", {"user": 4}, unique=Unique(while_="running")) == "index:[4]"
    assert queue.unique_key("index", {"user": 4}, unique=Unique(key="index")) == "index"
    assert queue.unique_key("index", {"user": 4}, unique=Unique(by="text")) == 'index:[""]'
    assert queue.unique_key("tidy", unique=Unique(on="fail")) == "nightly"
    await start()
    async with Queue(queue.name, queue.store.connection) as producer:
        await until(lambda: _published(producer), "the worker to publish")
        again = await producer.enqueue("index", unique=Unique(while_="queued"))
        assert again.id == first.id
        again = await producer.enqueue("index", unique=Unique(by="user"))
        assert again.id == first.id, "the published default of the argument counts"


async def test_the_key_of_a_request_answers_before_the_key_of_the_job(queue: Queue):
    """A request that replaced a job is repeated an hour later, when the job has run."""
    await queue.enqueue("x", {"n": 1}, unique=Unique(key="k", on="replace"))
    new = NewJob("x", msgspec.Raw(b'{"n":2}'), Options(unique=Unique(key="k", on="replace").stored()), "request")
    answer = await queue.submit(new)
    assert answer.done == "replaced"
    await queue.kill(answer.id)
    again = await queue.submit(new)
    assert (again.id, again.duplicate, again.done) == (answer.id, True, "returned")


async def test_a_job_that_enqueues_itself_again(queue: Queue, start: Any, until: Any):
    """While it runs, a key of queued jobs is free, one of unfinished jobs is its own, and with keep_last the next one
    waits for its end."""
    ran: dict[str, list[int]] = {"queued": [], "unfinished": [], "last": []}

    @queue.task(unique=Unique(key="queued", while_="queued"))
    async def queued(n: int) -> None:
        ran["queued"].append(n)
        if n < 4:
            await queued.options(delay=0.01).enqueue(n + 1)

    @queue.task(unique=Unique(key="unfinished"))
    async def unfinished(n: int) -> bool:
        ran["unfinished"].append(n)
        return (await unfinished.enqueue(n + 1)).duplicate

    @queue.task(unique=Unique(key="last", on="keep_last"))
    async def last(n: int) -> None:
        ran["last"].append(n)
        if n < 4:
            await last.enqueue(n + 1)

    await start()
    await queued.enqueue(1)
    await last.enqueue(1)
    assert await (await unfinished.enqueue(1)).result(10)
    await until(lambda: len(ran["queued"]) == len(ran["last"]) == 4, "all runs")
    assert ran == {"queued": [1, 2, 3, 4], "unfinished": [1], "last": [1, 2, 3, 4]}
