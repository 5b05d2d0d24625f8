"""Work on many jobs in pages: lists with cursors, and the verbs that change every job of a state."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jobq import AttemptError, Connection, Queue, State
from jobq.engine.model.job import NewJob, Options
from jobq.engine.queue import pages
from jobq.engine.queue.pages import CHUNK, Cursor, read_cursor, write_cursor
from jobq.errors import InvalidQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store import Call

REQUESTS = itertools.count(1)
ERROR = msgspec.json.encode(AttemptError(1, 2, "E", "no"))


async def filled(queue: Queue, count: int, *, state: State = State.WAITING) -> list[str]:
    """Make jobs in one state. Returns their ids in its order."""
    delay = 10_000 if state is State.DELAYED else 0
    accepted = await queue.submit_many([NewJob("x", options=Options(delay=delay)) for _ in range(count)])
    ids = [one.id for one in accepted]
    if state in (State.FAILED, State.COMPLETED):
        store = queue.store
        claimed = await store.do(store.claim(count, 30_000, "w", "w:0", next(REQUESTS), repeated=False))
        assert claimed is not None
        for start in range(0, count, 500):
            page = claimed.ids[start : start + 500]
            if state is State.FAILED:
                await store.do(store.fail([word for job in page for word in (job, claimed.token, 1, ERROR, "")]))
            else:
                await store.do(store.complete([word for job in page for word in (job, claimed.token, "[0,0]", "")], []))
    return ids


async def walk(queue: Queue, state: State | None, limit: int, type_: str | None = None) -> list[list[str]]:
    """The ids of all pages."""
    found: list[list[str]] = []
    cursor = None
    while True:
        page = await queue.page(state, type=type_, limit=limit, cursor=cursor)
        found.append([job.id for job in page.jobs])
        cursor = page.cursor
        if cursor is None:
            return found


async def test_rows_of_megabytes_come_a_few_at_a_time(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    large = [await queue.enqueue("x", "y" * 400_000) for _ in range(10)]
    asked: list[int] = []
    rows = queue.store.rows

    def counted(ids: Sequence[str | bytes], *, brief: bool) -> Call[list[Any]]:
        asked.append(len(ids))
        return rows(ids, brief=brief)

    monkeypatch.setattr(queue.store, "rows", counted)
    page = await queue.page(State.WAITING)
    assert [job.id for job in page.jobs] == [job.id for job in large]
    assert asked == [10, 7, 4, 1]


@pytest.mark.parametrize("state", [State.WAITING, State.COMPLETED, None])
async def test_a_page_of_large_jobs_ends_early(queue: Queue, state: State | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "PAGE_BYTES", 1_500_000)
    ids = [(await queue.enqueue("x", "y" * 400_000)).id for _ in range(10)]
    if state is State.COMPLETED:
        store = queue.store
        token = ""
        while claimed := await store.do(store.claim(10, 30_000, "w", "w:0", next(REQUESTS), repeated=False)):
            token = claimed.token
            done: list[Any] = [word for job in claimed.ids for word in (job, token, "[0,0]", "")]
            await store.do(store.complete(done, []))
    found = await walk(queue, state, 100)
    assert sorted(job_id for page in found for job_id in page) == sorted(ids)
    assert max(map(len, found)) == 6


async def test_briefs_have_the_fields_that_a_list_shows(queue: Queue):
    await queue.enqueue("x", "y" * 1000, priority=3, key="k", metadata={"payload": 1}, delay=5)
    await filled(queue, 1, state=State.FAILED)
    await filled(queue, 1, state=State.COMPLETED)
    rows = (await queue.page()).jobs
    briefs = (await queue.briefs()).jobs
    assert len(briefs) == 3
    for row, brief in zip(rows, briefs, strict=True):
        assert not brief.unreadable
        assert brief.error == (row.errors[-1] if row.errors else None)
        for name in brief.__struct_fields__:
            if name != "error":
                assert getattr(brief, name) == getattr(row, name), name


def test_a_cursor_can_be_encoded_and_decoded():
    for cursor in (Cursor(State.WAITING), Cursor(State.FAILED, "1722470400123", b"0htk3v9c20047qm2x\xff")):
        assert read_cursor(write_cursor(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "====",
        "WzFd",
        write_cursor(Cursor(State.FAILED, "five", b"x")),
        write_cursor(Cursor(State.FAILED, "NaN", b"x")),
        write_cursor(Cursor(State.FAILED, " 1 ", b"x")),
        write_cursor(Cursor(State.FAILED, "1_0", b"x")),
        "\u00e9",
        "W10",
        "\ud83d",
    ],
)
def test_invalid_cursors_are_refused(text: str):
    with pytest.raises(InvalidQuery, match=r"cursor '.*' cannot be read: pass the last page's cursor unchanged"):
        read_cursor(text)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_limits(limit: int, queue: Queue):
    with pytest.raises(InvalidQuery, match=f"limit is {limit}: it takes 1 to 1000"):
        await queue.page(limit=limit)


async def test_a_state_may_be_given_by_its_name(queue: Queue):
    ids = await filled(queue, 7)
    name: Any = "waiting"
    assert [job_id for page in await walk(queue, name, 3) for job_id in page] == ids
    await queue.enqueue("x", delay=60)
    delayed: Any = "delayed"
    assert await queue.remove_all(delayed) == 1
    for wrong in ("waitng", ""):
        unknown: Any = wrong
        with pytest.raises(InvalidQuery, match=f"state is '{wrong}': it takes one of waiting, delayed, active"):
            await queue.page(unknown)
        with pytest.raises(InvalidQuery, match="it takes one of"):
            await queue.remove_all(unknown)


async def test_pages_of_one_state(queue: Queue):
    ids = await filled(queue, 7)
    found = await walk(queue, State.WAITING, 3)
    assert [job_id for page in found for job_id in page] == ids
    assert all(len(page) <= 3 for page in found)


async def test_finished_ones_newest_first(connection: Connection):
    now = 1_000_000
    async with Queue("test", connection, clock=lambda: now) as queue:
        first = await filled(queue, 2, state=State.COMPLETED)
        now += 1000
        second = await filled(queue, 2, state=State.COMPLETED)
        found = await walk(queue, State.COMPLETED, 3)
        assert [job_id for page in found for job_id in page] == [*sorted(second)[::-1], *sorted(first)[::-1]]


async def test_a_list_of_all_states_shows_one_after_another(queue: Queue):
    failed = await filled(queue, 3, state=State.FAILED)
    waiting = await filled(queue, 3)
    delayed = await filled(queue, 3, state=State.DELAYED)
    seen = [job_id for page in await walk(queue, None, 2) for job_id in page]
    assert sorted(seen) == sorted([*failed, *waiting, *delayed])
    assert len(seen) == 9


async def test_of_one_type(queue: Queue):
    for i in range(10):
        await queue.enqueue("even" if i % 2 == 0 else "odd")
    found = await walk(queue, None, 2, "even")
    assert sum(len(page) for page in found) == 5
    assert await walk(queue, None, 2, 'ev"en') == [[]]


async def test_a_cursor_of_another_state_is_refused(queue: Queue):
    await filled(queue, 3)
    cursor = (await queue.page(State.WAITING, limit=1)).cursor
    with pytest.raises(InvalidQuery, match="the cursor belongs to state waiting, the query asks for failed"):
        await queue.page(State.FAILED, cursor=cursor)


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED, State.COMPLETED, State.FAILED])
async def test_remove_all(state: State, queue: Queue):
    count = 2 * CHUNK + 5
    await filled(queue, count, state=state)
    heard: list[int] = []
    assert await queue.remove_all(state, progress=heard.append) == count
    assert heard == [CHUNK, 2 * CHUNK, count]
    assert getattr(await queue.stats(), state) == 0


async def test_an_estimate_of_the_time_that_is_early_leaves_no_job_out(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    """On a busy machine the estimate is some ms early, and after a machine was suspended hours."""
    await filled(queue, 5, state=State.COMPLETED)
    monkeypatch.setattr(queue.store, "now_ms", lambda: 0)
    assert await queue.remove_all(State.COMPLETED) == 5


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED])
async def test_retry_all(state: State, queue: Queue):
    count = CHUNK + 5
    await filled(queue, count, state=state)
    assert await queue.retry_all(state) == count
    stats = await queue.stats()
    assert (stats.waiting, stats.completed, stats.failed) == (count, 0, 0)


async def test_verbs_with_a_limit_change_the_oldest_jobs(queue: Queue):
    ids = await filled(queue, 5)
    assert await queue.remove_all(State.WAITING, limit=2) == 2
    assert (await walk(queue, State.WAITING, 100))[0] == ids[2:]
    assert await queue.remove_all(State.WAITING, limit=0) == 0


async def test_verbs_with_older_than_change_only_old_jobs(connection: Connection):
    now = 1_000_000
    async with Queue("test", connection, clock=lambda: now) as queue:
        await filled(queue, 3, state=State.FAILED)
        now += 10_000
        young = await filled(queue, 2, state=State.FAILED)
        now += 5_000
        assert await queue.remove_all(State.FAILED, older_than=10) == 3
        assert sorted((await walk(queue, State.FAILED, 100))[0]) == sorted(young)
        assert await queue.retry_all(older_than=5) == 2


async def test_jobs_that_cannot_be_retried_are_skipped(queue: Queue):
    """Other jobs hold the keys of the first pages. The jobs after them are still retried."""
    held = [await queue.enqueue("x", key=f"k{i}") for i in range(CHUNK + 3)]
    for job in held:
        await queue.kill(job.id)
    await filled(queue, 4, state=State.FAILED)
    for i in range(CHUNK + 3):
        await queue.enqueue("x", key=f"k{i}")
    assert await queue.retry_all() == 4
    assert (await queue.stats()).failed == CHUNK + 3


@pytest.mark.parametrize(
    ("verb", "state", "older_than", "message"),
    [
        ("retry_all", State.WAITING, None, "cannot retry all waiting jobs: it takes failed, completed"),
        ("remove_all", State.ACTIVE, None, "cannot remove all active jobs: it takes waiting, delayed"),
        ("remove_all", State.WAITING, 5, "waiting jobs stand in order of priority, not of age: leave the age out"),
        ("remove_all", State.BLOCKED, 5, "blocked jobs stand in order of priority, not of age: leave the age out"),
    ],
)  # fmt: skip
async def test_invalid_arguments_of_verbs_for_many_jobs_are_refused(
    verb: str, state: State, older_than: float | None, message: str, queue: Queue
):
    with pytest.raises(InvalidQuery, match=message):
        await getattr(queue, verb)(state, older_than=older_than)
