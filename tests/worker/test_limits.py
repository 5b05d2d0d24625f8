"""Workers under limits: never more than allowed, never fewer than possible, and rules that change at run time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from jobq import Breaker, Concurrency, InvalidJob, Queue, Rate, Settings, State, UnknownBreaker, UnknownRule, Worker
from jobq.engine.store.keys import registry_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools import Gate

    from tests.conftest import Until


class Peak:
    """How many runs of each value are under way, and the most that ever were."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def begin(self, value: str) -> None:
        self.now[value] += 1
        self.most[value] = max(self.most[value], self.now[value])

    def end(self, value: str) -> None:
        self.now[value] -= 1


async def test_each_value_of_an_argument_has_a_count_of_its_own(queue: Queue, start: Callable[..., Any]):
    peak = Peak()

    @queue.task(limits=[Concurrency(2, by="tenant")])
    async def work(tenant: str) -> None:
        peak.begin(tenant)
        # the others of this tenant get their chance to start too early
        for _ in range(5):
            await asyncio.sleep(0)
        peak.end(tenant)

    await start(concurrency=20)
    await start(concurrency=20)
    jobs = await work.enqueue_many([{"tenant": "abc"[n % 3]} for n in range(60)])
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert set(peak.most) == {"a", "b", "c"}
    assert max(peak.most.values()) == 2


async def test_all_places_of_a_key_are_used_while_its_jobs_wait(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    running: set[int] = set()

    @queue.task(limits=[Concurrency(3)])
    async def work(n: int) -> None:
        running.add(n)
        await gate.passing()

    await work.enqueue_many([{"n": n} for n in range(9)])
    await start(concurrency=20)
    await until(lambda: len(running) == 3, "three jobs to run")
    stats = await queue.stats()
    assert (stats.active, stats.held, stats.waiting) == (3, 6, 0)
    assert running == {0, 1, 2}, "in their order"
    [rule] = await queue.limits()
    assert (rule.rule, rule.concurrency, rule.active, rule.held, rule.source) == ("work", 3, 3, 6, "code")
    gate.open()
    await until(lambda: len(running) == 9, "the others")


async def test_a_failed_attempt_and_a_kill_give_their_places_back(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    ran: list[str] = []

    @queue.task(limits=[Concurrency(1)], attempts=2, backoff=[0])
    async def work(what: str) -> None:
        ran.append(what)
        if what == "fails":
            raise ValueError(what)
        if what == "hangs":
            await gate.passing()

    _, hangs, last = await work.enqueue_many([{"what": what} for what in ("fails", "hangs", "last")])
    await start()
    await until(lambda: "hangs" in ran, "the second job")
    await queue.kill(hangs.id)
    await last.result(10)
    await until(lambda: ran.count("fails") == 2, "the second attempt")


async def test_a_rule_that_an_operator_sets_acts_at_once_and_survives_a_deploy(
    queue: Queue, start: Callable[..., Any], gate: Gate, until: Until
):
    running = 0

    @queue.task(limits=[Concurrency(1, by="tenant", name="tenant")])
    async def work(tenant: str) -> None:
        nonlocal running
        running += 1
        await gate.passing()

    await work.enqueue_many([{"tenant": "a"}] * 5)
    await start()
    await until(lambda: running == 1, "one job to run")
    assert await queue.would_hold("tenant", concurrency=3) == 2
    await queue.set_limit("tenant", concurrency=3)
    await until(lambda: running == 3, "three jobs to run")
    await start()
    [rule] = await queue.limits()
    assert (rule.concurrency, rule.source) == (3, "operator")
    assert rule.declared is not None
    assert rule.declared.concurrency == 1
    [key] = await queue.limit_keys("tenant")
    assert (key.key, key.held, key.active) == ("tenant:a", 2, 3)
    assert await queue.reset_limit("tenant") == rule.declared


async def test_a_rate_spreads_starts_over_time(queue: Queue, start: Callable[..., Any]):
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    @queue.task(limits=[Rate(100, per=1, burst=2)])
    async def work() -> None:
        starts.append(loop.time())

    await start()
    jobs = await work.enqueue_many([{} for _ in range(22)])
    await asyncio.gather(*(job.result(20) for job in jobs))
    # the last of 22 starts when 20 more tokens have come, one every 10 ms; a busy machine only makes it later
    assert starts[-1] - starts[0] >= 0.15


async def test_a_more_urgent_job_of_a_full_key_is_the_next_one(queue: Queue, start: Callable[..., Any], until: Until):
    order: list[int] = []
    may_end = asyncio.Event()

    @queue.task(limits=[Concurrency(1)])
    async def work(n: int) -> None:
        order.append(n)
        await may_end.wait()

    await work.enqueue_many([{"n": n} for n in range(3)])
    await start()
    await until(lambda: order == [0], "the first one to run")
    urgent = await work.options(priority=-5).enqueue(n=9)
    may_end.set()
    await urgent.result(10)
    await until(lambda: len(order) == 4, "all to run")
    assert order == [0, 9, 1, 2]


async def test_a_dead_workers_places_come_back_when_its_leases_run_out(
    queue: Queue, start: Callable[..., Any], until: Until
):
    ran: list[int] = []

    @queue.task(limits=[Concurrency(1)], attempts=1)
    async def work(n: int) -> None:
        ran.append(n)

    await work.enqueue_many([{"n": 0}, {"n": 1}])
    store = queue.store
    # a worker that dies between its claim and its first sign of life
    store.limited = True
    await store.do(store.rule("declared", "work", "1"))
    await store.do(store.admit(10, 10, 1))
    claimed = await store.do(store.claim(10, 300, "dead", "dead:0", 1, repeated=False))
    assert claimed is not None
    assert len(claimed.ids) == 1
    await start(lease=0.3)
    await until(lambda: ran == [1], "the other job to run")


def test_a_name_that_is_no_argument_is_refused_at_import():
    queue = Queue("mail")
    with pytest.raises(InvalidJob, match="by='tenent' names no argument of 'send'; there are tenant, to"):

        @queue.task(limits=[Concurrency(1, by="tenent")])
        async def send(tenant: str, to: str) -> None: ...


def test_two_tasks_cannot_give_one_rule_different_numbers():
    queue = Queue("mail")

    @queue.task(limits=[Concurrency(1, name="smtp")])
    async def send() -> None: ...

    with pytest.raises(InvalidJob, match="rule 'smtp' is declared twice, as 1 and as 2"):

        @queue.task(limits=[Concurrency(2, name="smtp")])
        async def send_many() -> None: ...


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([Concurrency(1), Concurrency(2)], "two concurrencies, 1 and 2"),
        ([3], "it takes Concurrency"),
        (["no such rule:"], "1 to 128 letters"),
        (["queue"], "applies to every job"),
        (["a:\n"], "control characters"),
        ([f"r{n}" for n in range(9)], "8 at most"),
    ],
)
def test_limits_that_cannot_be_are_refused(given: list[Any], words: str):
    queue = Queue("mail")
    with pytest.raises(InvalidJob, match=words):

        @queue.task(limits=given)
        async def send() -> None: ...


@pytest.mark.parametrize("make", [
    lambda: Concurrency(0), lambda: Concurrency(True), lambda: Rate(0, per=1), lambda: Rate(1, per="1 fortnight"),
    lambda: Rate(1, per=0), lambda: Rate(1, per=1, burst=0), lambda: Rate(1, per=float("nan")),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(make: Callable[[], Any]):
    with pytest.raises(InvalidJob):
        make()


async def test_a_key_without_a_rule_is_refused_with_the_rules_that_exist(queue: Queue):
    await queue.set_limit("stripe", concurrency=1)
    with pytest.raises(UnknownRule, match="there is no rule 'strype'; there are: stripe"):
        await queue.enqueue("pay", limits=["strype"])
    job = await queue.enqueue("pay", limits=["stripe", "stripe:eu"])
    row = await queue.get(job.id)
    assert (row.state, row.limits) == (State.HELD, ["stripe", "stripe:eu"])


async def test_the_value_of_a_key_is_the_argument_or_its_default(queue: Queue):
    @queue.task(limits=[Concurrency(1, by="tenant"), Concurrency(1, by="size")])
    async def work(tenant: str = "nobody", size: int | None = None) -> None: ...

    for given, keys in (
        ({}, ["work.tenant:nobody", "work.size:null"]),
        ({"tenant": "Ä cme", "size": 3}, ["work.tenant:Ä cme", "work.size:3"]),
    ):
        job = await work.enqueue(**given)
        assert (await queue.get(job.id)).limits == keys
    job = await work.enqueue(tenant="x" * 5000, size=None)
    [tenant, _] = (await queue.get(job.id)).limits
    assert tenant.startswith("work.tenant:~")
    assert len(tenant) < 100


async def test_held_jobs_can_be_listed_killed_removed_and_moved(queue: Queue):
    await queue.set_limit("r", concurrency=0)
    first, second, third = [await queue.enqueue("t", limits=["r"]) for _ in range(3)]
    page = await queue.page(State.HELD)
    assert [row.id for row in page.jobs] == [first.id, second.id, third.id]
    await queue.reprioritise(third.id, -1)
    await queue.kill(first.id)
    await queue.remove(second.id)
    assert [row.id for row in (await queue.page(State.HELD)).jobs] == [third.id]
    [key] = await queue.limit_keys("r")
    assert (key.held, key.active) == (1, 0)
    await queue.retry(first.id)
    assert (await queue.stats()).held == 2


async def test_a_limit_of_another_queue_does_not_count(connection: Any):
    async with Queue("one", connection) as one, Queue("two", connection) as two:
        await one.set_limit("r", concurrency=1)
        with pytest.raises(UnknownRule):
            await two.enqueue("t", limits=["r"])


async def test_a_worker_that_stops_lets_another_one_start_what_it_made_room_for(queue: Queue, gate: Gate, until: Until):
    ran: list[int] = []

    @queue.task(limits=[Concurrency(1)])
    async def work(n: int) -> None:
        ran.append(n)
        if n == 0:
            await gate.passing()

    async with Worker(queue, grace=10) as other:
        first = Worker(queue, grace=10)
        await work.enqueue_many([{"n": 0}, {"n": 1}])
        async with first:
            first.start()
            await until(lambda: ran == [0], "the first job to run")
            other.start()
            first.stop()
            gate.open()
        await until(lambda: ran == [0, 1], "the other worker to run the second one")


async def test_the_whole_queue_has_a_concurrency_of_its_own(
    connection: Any, start: Callable[..., Any], gate: Gate, until: Until
):
    async with Queue("bounded", connection, limits=[Concurrency(3)]) as queue:
        running: set[int] = set()
        most = 0

        @queue.task
        async def work(n: int) -> None:
            nonlocal most
            running.add(n)
            most = max(most, len(running))
            await gate.passing()
            running.discard(n)

        jobs = await work.enqueue_many([{"n": n} for n in range(20)])
        await start(queue, concurrency=10)
        await start(queue, concurrency=10)
        await until(lambda: len(running) == 3, "three jobs to run")
        stats = await queue.stats()
        assert (stats.active, stats.waiting, stats.held) == (3, 17, 0)
        [rule] = await queue.limits()
        assert (rule.rule, rule.concurrency, rule.active) == ("queue", 3, 3)
        gate.open()
        await asyncio.gather(*(job.result(20) for job in jobs))
        assert most == 3


async def test_the_whole_queue_has_a_rate_of_its_own(connection: Any, start: Callable[..., Any]):
    loop = asyncio.get_running_loop()
    async with Queue("bounded", connection, limits=[Rate(200, per=1, burst=5)]) as queue:
        starts: list[float] = []

        @queue.task
        async def work() -> None:
            starts.append(loop.time())

        await start(queue)
        jobs = await work.enqueue_many([{} for _ in range(45)])
        await asyncio.gather(*(job.result(20) for job in jobs))
        assert starts[-1] - starts[0] >= 0.15, "40 tokens, one every 5 ms"


async def test_a_raised_concurrency_of_the_queue_acts_at_once(
    connection: Any, start: Callable[..., Any], gate: Gate, until: Until
):
    async with Queue("bounded", connection, limits=[Concurrency(1)]) as queue:
        running = 0

        @queue.task
        async def work() -> None:
            nonlocal running
            running += 1
            await gate.passing()

        await work.enqueue_many([{}] * 5)
        await start(queue)
        await until(lambda: running == 1, "one job to run")
        await queue.set_limit("queue", concurrency=4)
        await until(lambda: running == 4, "four jobs to run")


async def test_a_worker_that_stops_hands_the_queues_place_on(connection: Any, gate: Gate, until: Until):
    async with Queue("bounded", connection, limits=[Concurrency(1)]) as queue:
        ran: list[int] = []

        @queue.task
        async def work(n: int) -> None:
            ran.append(n)
            if n == 0:
                await gate.passing()

        await work.enqueue_many([{"n": 0}, {"n": 1}])
        async with Worker(queue, grace=10) as other:
            first = Worker(queue, grace=10)
            async with first:
                first.start()
                await until(lambda: ran == [0], "the first job to run")
                other.start()
                first.stop()
                gate.open()
            await until(lambda: ran == [0, 1], "the other worker to run the second one")


def test_a_limit_of_a_queue_has_no_argument():
    with pytest.raises(InvalidJob, match="a queue takes Concurrency and Rate without by= and name="):
        Queue("mail", limits=[Concurrency(1, by="tenant")])


async def test_the_rule_of_the_queue_says_what_it_would_hold_and_counts(connection: Any):
    async with Queue("bounded", connection) as queue:
        for _ in range(5):
            await queue.enqueue("t")
        assert await queue.would_hold("queue", concurrency=2) == 3
        assert await queue.would_hold("queue", concurrency=9, rate=Rate(1, per=1, burst=4)) == 1
        with pytest.raises(UnknownRule):
            await queue.limit_keys("queue")
        await queue.set_limit("queue", concurrency=2)
        await queue.close_limit("queue", 60)
        [key] = await queue.limit_keys("queue")
        assert (key.key, key.held, key.active) == ("queue", 0, 0)
        assert key.closed_until is not None


async def test_a_rule_that_code_dropped_is_an_orphan_and_can_be_removed(
    queue: Queue, start: Callable[..., Any], until: Until
):
    @queue.task(limits=[Concurrency(1, name="kept"), Concurrency(2, by="tenant", name="also")])
    async def work(tenant: str) -> None: ...

    store = queue.store
    await store.do(store.rule("declared", "dropped", "5"))
    await store.do(store.rule("declared", "queue", "5"))
    await queue.set_limit("by-hand", concurrency=1)
    await start()
    await until(lambda: is_published(queue), "the type to be published")
    rows = {row.rule: row.orphan for row in await queue.limits()}
    assert rows == {"kept": False, "also": False, "dropped": True, "queue": False, "by-hand": False}
    await queue.set_limit("dropped", concurrency=7)
    await queue.remove_limit("dropped")
    assert "dropped" not in {row.rule for row in await queue.limits()}


async def is_published(queue: Queue) -> bool:
    return bool(await queue.types())


async def test_a_queue_that_only_has_a_rule_is_listed(connection: Any):
    async with Queue("only-a-rule", connection) as queue:
        await queue.set_limit("r", concurrency=1)
        assert b"only-a-rule" in await queue.store.command(b"SMEMBERS", registry_key("jobq"))


async def test_a_dry_run_leaves_out_rates_that_count_costs(queue: Queue):
    await queue.set_limit("r", concurrency=9)
    for _ in range(4):
        await queue.enqueue("work", limits=["r"], costs={"tokens": 5})
    assert await queue.would_hold("r", rate=Rate(10, per=1, burst=1)) == 3
    assert await queue.would_hold("r", rate=Rate(10, per=1, burst=1, unit="tokens")) == 0


async def test_closing_a_rule_whose_jobs_have_values_is_refused(queue: Queue, start: Callable[..., Any], until: Until):
    @queue.task(limits=[Concurrency(2, by="tenant", name="tenant"), Concurrency(9, name="all")])
    async def work(tenant: str) -> None: ...

    await start()
    await work.enqueue(tenant="a")
    await until(queue.types, "the type to be published")
    with pytest.raises(InvalidJob, match="its jobs count for each value of tenant, so name a key"):
        await queue.close_limit("tenant", 5)
    await queue.close_limit("tenant:a", 5)
    await queue.close_limit("all", 5)


async def test_removing_what_living_workers_declare_says_that_it_comes_back(
    queue: Queue, start: Callable[..., Any], until: Until
):
    @queue.task(limits=[Concurrency(2, name="r")], breaker=Breaker())
    async def work() -> None: ...

    await queue.set_limit("by-hand", concurrency=1)
    await start()
    await until(queue.types, "the type to be published")
    await until(queue.breakers, "the breaker")
    assert await queue.remove_limit("r") is True
    assert await queue.remove_limit("by-hand") is False
    assert await queue.remove_breaker("work") is True


async def test_a_rule_or_breaker_that_does_not_exist_is_an_error_with_those_that_do(queue: Queue):
    await queue.set_limit("tenant", concurrency=1)
    for call in (
        queue.limit("r"),
        queue.limit_keys("r"),
        queue.reset_limit("r"),
        queue.remove_limit("r"),
        queue.close_limit("r", 5),
        queue.open_limit("r"),
    ):
        with pytest.raises(UnknownRule, match="there is no rule 'r'; there are: tenant") as caught:
            await call
        assert caught.value.known == ["tenant"]
    assert [row.rule for row in await queue.limits()] == ["tenant"]
    for breaking in (queue.trip_breaker("work"), queue.reset_breaker("work"), queue.remove_breaker("work")):
        with pytest.raises(UnknownBreaker, match="type 'work' has no circuit breaker; there are: none"):
            await breaking


def declare_both(queue: Queue) -> Any:
    @queue.task(limits=[Concurrency(2, by="tenant", name="tenant")], breaker=Breaker(runs=3))
    async def work(tenant: str) -> None: ...

    return work


async def test_the_first_enqueue_declares_what_no_worker_has_declared_yet(queue: Queue):
    work = declare_both(queue)
    await work.enqueue(tenant="a")
    [rule] = await queue.limits()
    assert (rule.rule, rule.concurrency, rule.source) == ("tenant", 2, "code")
    [breaker] = await queue.breakers()
    assert (breaker.type, breaker.runs) == ("work", 3)


async def test_an_enqueue_leaves_what_was_declared_before_as_it_is(queue: Queue, connection: Any):
    await declare_both(queue).enqueue_many([{"tenant": "a"}])
    other = Queue(queue.name, connection)

    @other.task(limits=[Concurrency(9, name="tenant")], breaker=Breaker(runs=9))
    async def work() -> None: ...

    async with other:
        await work.enqueue()
    assert [(row.rule, row.concurrency) for row in await queue.limits()] == [("tenant", 2)]
    assert [(row.type, row.runs) for row in await queue.breakers()] == [("work", 3)]


async def test_a_program_changes_what_its_code_declares_before_anything_was_enqueued(queue: Queue):
    declare_both(queue)
    await queue.close_limit("tenant:a", 60)
    assert [key.key for key in await queue.limit_keys("tenant")] == ["tenant:a"]
    assert await queue.reset_limit("tenant") is not None
    assert (await queue.trip_breaker("work")).state == "open"
    assert (await queue.reset_breaker("work")).state == "closed"


async def test_limits_on_numbers_are_settings(redis_url: str):
    few = Settings(redis_url=redis_url, max_rules=2, max_limit_keys=2, max_schedules=1, max_groups=1)
    async with Queue("test", settings=few) as queue:
        with pytest.raises(InvalidJob, match=r"limits gives a job 3 keys: it takes 2 at most \(JOBQ_MAX_LIMIT_KEYS\)"):

            @queue.task(limits=["a", "b", "c"])
            async def many_keys() -> None: ...

        for name in ("a", "b"):
            await queue.set_limit(name, concurrency=1)
        with pytest.raises(InvalidJob, match=r"'c' is one too many: a queue has 2 rules at most \(JOBQ_MAX_RULES\)"):
            await queue.set_limit("c", concurrency=1)
        with pytest.raises(InvalidJob, match="limits gives a job 3 keys"):
            await queue.enqueue("t", limits=["a:1", "a:2", "b"])
        with pytest.raises(InvalidJob, match="limits gives a job 3 keys"):
            await queue.put_schedule("s", "t", every=60, limits=["a:1", "a:2", "b"])
        await queue.put_schedule("s", "t", every=60, limits=["a:1", "b"])
        with pytest.raises(InvalidJob, match=r"a queue has 1 schedules at most \(JOBQ_MAX_SCHEDULES\)"):
            await queue.put_schedule("second", "t", every=60)
        await queue.set_group("acme", weight=2)
        await queue.set_group("acme", weight=3)
        with pytest.raises(InvalidJob, match=r"1 groups of a queue have settings at most \(JOBQ_MAX_GROUPS\)"):
            await queue.set_group("globex", weight=2)
        await queue.enqueue("t", group="globex")  # only settings are bounded, not groups
    more = Settings(redis_url=redis_url, max_limit_keys=9)
    async with Queue("test", settings=more) as queue:
        await queue.enqueue("t", limits=[f"a:{n}" for n in range(9)])
        with pytest.raises(InvalidJob, match="limits gives a job 10 keys"):
            await queue.enqueue("t", limits=[f"a:{n}" for n in range(10)])


async def test_a_concurrency_that_is_raised_and_lowered_while_jobs_run_leaves_no_place_taken(
    queue: Queue, start: Callable[..., Any], until: Until
):
    peak = Peak()

    @queue.task(limits=[Concurrency(3)])
    async def work(n: int) -> None:
        peak.begin("")
        await asyncio.sleep(0.001)
        peak.end("")

    await start()
    jobs = await work.enqueue_many([{"n": n} for n in range(200)])
    for places in (1, 5, 2, 4, 1, 3):
        before = (await queue.stats()).completed_total
        await queue.set_limit("work", concurrency=places)

        async def went_on(before: int = before) -> bool:
            return (await queue.stats()).completed_total >= before + 10

        await until(went_on, "some more jobs")
    await asyncio.gather(*(job.result(20) for job in jobs))
    assert peak.most[""] <= 5
    (rule,) = await queue.limits()
    assert (rule.active, rule.held) == (0, 0)


async def test_jobs_of_a_key_run_in_their_order_over_workers_that_come_and_go(queue: Queue, until: Until):
    """A job that is handed back goes before those that were enqueued after it."""
    done: dict[str, list[int]] = {"a": [], "b": []}

    @queue.task(limits=[Concurrency(1, by="key")])
    async def work(key: str, n: int) -> None:
        await asyncio.sleep(0.001 * (n % 7))
        done[key].append(n)

    for n in range(40):
        await work.enqueue_many([{"key": key, "n": n} for key in done])
    while (ended := (await queue.stats()).completed) < 80:
        async with Worker(queue, concurrency=1 + ended % 5, grace=0.0) as worker:
            worker.start()

            async def some(ended: int = ended) -> bool:
                return (await queue.stats()).completed > ended + 5 or (await queue.stats()).completed == 80

            await until(some, "some more jobs")
    assert done == {"a": list(range(40)), "b": list(range(40))}


async def test_after_a_kill_the_next_job_of_the_key_does_not_wait_for_the_handler(
    queue: Queue, start: Callable[..., Any], gate: Gate
):
    """A killed handler may take its time to end. Its job has ended, so its place is free."""
    ended: list[int] = []
    may_end = asyncio.Event()

    @queue.task(limits=[Concurrency(1, by="key")])
    async def work(key: str, n: int) -> None:
        try:
            await gate.passing(n)
        except asyncio.CancelledError:
            await may_end.wait()
            ended.append(n)
            raise

    await start()
    first = await work.enqueue("a", 1)
    assert await gate.arrival() == 1
    await work.enqueue("a", 2)
    await first.kill()
    assert await gate.arrival() == 2
    assert not ended
    may_end.set()
