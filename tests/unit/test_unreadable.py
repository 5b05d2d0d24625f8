"""A stored value that cannot be read does not hide other values, in any way of reading."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from jobq import AttemptError, JobFailed, Queue, State
from jobq.cli import render
from jobq.errors import UnreadableResult
from jobq.http.app import create_app

if TYPE_CHECKING:
    from jobq.engine.store import Store

ERROR = msgspec.json.encode(AttemptError(1, 2, "E", "no"))
GARBAGE = {
    "invalid JSON": b"oops{",
    "wrong type": b'{"type":[],"message":5,"at":"soon"}',
    "a number": b"7",
    "invalid UTF-8": b'"\xff\xfe"',
    "newer fields": b'[1,2,"w",null,{"newer":true}]',
    "too deep": b"[" * 100_000,
    "empty": b"",
    "a line break": b"\n\n",
    "control characters": b"\x00\x1b[31m\n\x07",
    "huge number": b"9" * 400,
}
COLUMNS = {
    State.WAITING: ("jobs", "priorities", "unserved"),
    State.DELAYED: ("jobs", "attempts", "errors"),
    State.ACTIVE: ("jobs", "leases", "attempts", "progress", "logs"),
    State.COMPLETED: ("jobs", "results", "logs", "progress"),
    State.FAILED: ("jobs", "errors", "attempts", "logs"),
}
CASES = [(state, column) for state, columns in COLUMNS.items() for column in columns]


async def three_of(queue: Queue, state: State) -> list[str]:
    """Three jobs of one state."""
    delay = 1000 if state is State.DELAYED else 0
    ids = [(await queue.enqueue("send", {"n": n}, delay=delay, priority=5)).id for n in range(3)]
    store = queue.store
    if state in (State.WAITING, State.DELAYED):
        return ids
    claimed = await store.do(store.claim(3, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    held: list[Any] = [(job_id, claimed.token) for job_id in claimed.ids]
    await store.do(store.log([word for pair in held for word in (*pair, 0, 1, b'{"at":1,"message":"hello"}')]))
    await store.do(store.progress([word for pair in held for word in (*pair, b"5")]))
    if state is State.COMPLETED:
        await store.do(store.complete([word for pair in held for word in (*pair, b'[1,2,"w",42]', "")], []))
    elif state is State.FAILED:
        await store.do(store.fail([word for pair in held for word in (*pair, 1, ERROR, "")]))
    return ids


def check_json(value: Any) -> None:
    """It is sent as JSON that every parser reads."""
    msgspec.json.decode(msgspec.json.encode(value).decode())


@pytest.mark.parametrize(("state", "column"), CASES)
async def test_a_column_of_one_job(queue: Queue, state: State, column: str) -> None:
    ids = await three_of(queue, state)
    key = queue.store.keys[column]
    app = create_app(queue)
    async with TestClient(TestServer(app)) as client:
        for name, garbage in GARBAGE.items():
            await queue.store.command(b"HSET", key, ids[1], garbage)
            page = await queue.page(state)
            assert {row.id for row in page.jobs} == set(ids), name
            row = await queue.get(ids[1])
            for shown in (*page.jobs, row, await queue.logs(ids[1]), await queue.stats(), await queue.workers()):
                check_json(shown)
            render.job_lines(row)
            render.table(render.JOBS_HEAD, [render.job_line(one, 0.0) for one in page.jobs])
            for line in await queue.logs(ids[1]):
                render.log_lines(line)
            others = [one for one in page.jobs if one.id != ids[1]]
            assert all(one.type == "send" and not one.unreadable for one in others), name
            for path in ("/jobs", f"/jobs/{ids[1]}", f"/jobs/{ids[1]}/logs", "/jobs/failed/jobs", "/jobs/stats"):
                response = await client.get(path)
                assert response.status == 200, (name, path, await response.text())
                msgspec.json.decode(await response.read())
            result = await client.get(f"/jobs/{ids[1]}/result")
            assert result.status in (200, 202, 409), (name, await result.text())


@pytest.mark.parametrize("state", list(COLUMNS))
async def test_an_unreadable_spec_is_shown_as_unreadable(queue: Queue, state: State) -> None:
    ids = await three_of(queue, state)
    await queue.store.command(b"HSET", queue.store.keys["jobs"], ids[0], b"oops\x9b")
    row = await queue.get(ids[0])
    assert (row.type, row.state, row.unreadable["spec"]) == ("?", state, "oops\\x9b")


@pytest.mark.parametrize("garbage", [pytest.param(value, id=name) for name, value in GARBAGE.items() if value])
async def test_an_unreadable_result_fails_its_own_waiters_only(queue: Queue, garbage: bytes) -> None:
    ids = await three_of(queue, State.ACTIVE)
    waits = [asyncio.create_task(queue.result(job_id, timeout=5)) for job_id in ids]
    store = queue.store
    token = await store.command(b"HGET", store.keys["leases"], ids[0])
    good = b'[1,2,"w",42]'
    rows = [word for n, job_id in enumerate(ids) for word in (job_id, token, garbage if n == 1 else good, "")]
    await store.do(store.complete(rows, []))
    first, second, third = await asyncio.gather(*waits, return_exceptions=True)
    assert first == third == msgspec.Raw(b"42")
    assert isinstance(second, UnreadableResult) or (
        garbage == GARBAGE["newer fields"] and second == msgspec.Raw(b"null")
    )


async def test_an_unreadable_error_fails_its_own_waiters_only(queue: Queue) -> None:
    ids = await three_of(queue, State.ACTIVE)
    waits = [asyncio.create_task(queue.result(job_id, timeout=5)) for job_id in ids]
    store = queue.store
    token = await store.command(b"HGET", store.keys["leases"], ids[0])
    rows = [word for n, job_id in enumerate(ids) for word in (job_id, token, 1, b"oops" if n == 1 else ERROR, "")]
    await store.do(store.fail(rows))
    failures = await asyncio.gather(*waits, return_exceptions=True)
    assert [failure.type for failure in failures if isinstance(failure, JobFailed)] == ["E", "Unreadable", "E"]


@pytest.mark.parametrize("garbage", [pytest.param(value, id=name) for name, value in GARBAGE.items()])
async def test_a_worker_row(queue: Queue, garbage: bytes) -> None:
    good = b'{"id":"a","host":"h","pid":1,"queues":[],"types":[],"concurrency":1,"running":0,"started":1,"seen":1}'
    await queue.store.do(queue.store.heartbeat("a", good))
    await queue.store.do(queue.store.heartbeat("b", good))
    await queue.store.command(b"HSET", queue.store.keys["workers_info"], "b", garbage)
    rows = {row.id: row for row in await queue.workers()}
    check_json(list(rows.values()))
    assert (set(rows), rows["a"].unreadable, rows["b"].host) == ({"a", "b"}, None, "?")
    assert rows["b"].unreadable is not None
    for row in rows.values():
        render.worker_line(row)


@pytest.mark.parametrize("garbage", [pytest.param(value, id=name) for name, value in GARBAGE.items()])
async def test_stats(queue: Queue, garbage: bytes) -> None:
    ids = await three_of(queue, State.WAITING)
    keys = queue.store.keys
    await queue.store.command(
        b"HSET", keys["metrics"], "completed", garbage, "failed", 3, garbage, 1, "wait:3", garbage
    )
    await queue.store.command(b"HSET", keys["meta"], "paused", garbage)
    await queue.store.command(b"HSET", keys["jobs"], ids[0], garbage)
    stats = await queue.stats()
    check_json(stats)
    assert (stats.waiting, stats.failed_total, stats.paused) == (3, 3, True)


async def test_an_id_that_is_not_utf8_can_be_listed_and_removed(queue: Queue, admin: Store) -> None:
    """It can be listed page by page, and removed with the others."""
    strange = b"\xff\xfe\nx"
    await three_of(queue, State.FAILED)
    await admin.command(b"HSET", admin.keys["jobs"], strange, b'{"type":"send"}')
    await admin.command(b"ZADD", admin.keys["failed"], 5, strange)
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = await queue.page(State.FAILED, limit=1, cursor=cursor)
        seen += [row.id for row in page.jobs]
        cursor = page.cursor
    assert len(set(seen)) == 4
    assert await queue.remove_all(State.FAILED) == 4
