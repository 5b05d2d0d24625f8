"""The largest replies of the reading scripts, when every value is as large as it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jobq.engine.model.types import ROW_BYTES
from jobq.engine.queue.published import PAGE
from jobq.engine.store import CLAIM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store import Call, Store
    from tests.lua.table import Bench

MEGABYTE = 1_000_000
MOST = 2 * MEGABYTE + 200_000
"""A script stops after the row with which it passes 1 MB. A row is a spec, a result and bounded columns."""
IDS = [f"j{n}" for n in range(20)]

READS: dict[str, tuple[Callable[[Store], Call[Any]], int]] = {
    "claim": (lambda store: store.claim(20, 1000, "w", "w:0", 1, repeated=False), 3 * MEGABYTE),
    "page": (
        lambda store: store.page(
            "completed", reverse=False, limit=20, scan=20, prefix=b"xx", highest="", cursor=("", "")
        ),
        1000,
    ),
    "reap": (lambda store: store.reap(20, 1000, "w", 10**9, 0), MOST),
    "results": (lambda store: store.results(IDS), MOST),
    "rows": (lambda store: store.rows(IDS), MOST),
    "rows, brief": (lambda store: store.rows(IDS, brief=True), 10_000),
    "stats": (lambda store: store.stats(), 10_000),
}


def size(reply: Any) -> int:
    """Bytes of a reply."""
    if isinstance(reply, list | tuple):
        return sum(map(size, reply))
    return len(reply) if isinstance(reply, bytes) else 8


@pytest.mark.parametrize("name", READS)
async def test_bytes_of_a_reply(name: str, bench: Bench) -> None:
    admin = bench.admin
    state = {"claim": "waiting", "reap": "active", "stats": "waiting"}.get(name, "completed")
    for n, job_id in enumerate(IDS):
        await admin.command(b"HSET", admin.keys["jobs"], job_id, b"x" * MEGABYTE)
        await admin.command(b"HSET", admin.keys["results"], job_id, b"x" * MEGABYTE)
        await admin.command(b"ZADD", admin.keys[state], n, job_id)
    await admin.command(b"HSET", admin.keys["meta"], b"swept", 999)
    make, most = READS[name]
    call = make(bench.store)
    call.read = lambda reply: reply  # The id is used as it is.
    reply = await bench.store.do(call)
    assert 0 < size(reply) <= most, f"{size(reply)} bytes"


async def test_a_filter_by_type_reads_one_megabyte_per_call(bench: Bench) -> None:
    """The type of a job is only in its spec, and reading 1,000 specs of a megabyte would hold Redis for a second."""
    admin = bench.admin
    for n, job_id in enumerate(IDS):
        await admin.command(b"HSET", admin.keys["jobs"], job_id, b'{"type":"a"%b}' % (b"x" * 400_000))
        await admin.command(b"ZADD", admin.keys["failed"], n, job_id)
    found: list[bytes] = []
    cursor: Any = ("", b"")
    calls = 0
    while True:
        ids, score, last = await bench.store.do(
            bench.store.page(
                "failed", reverse=False, limit=20, scan=20, prefix=b'{"type":"a"', highest="", cursor=cursor
            )
        )
        found += ids
        calls += 1
        if not last:
            break
        cursor = (score.decode(), last)
    assert [job_id.decode() for job_id in found] == IDS
    assert calls == 7


async def test_stats_read_one_megabyte_of_specs(bench: Bench) -> None:
    """The oldest job of each priority is read, and each may be large."""
    admin = bench.admin
    for n, job_id in enumerate(IDS):
        await admin.command(b"HSET", admin.keys["jobs"], job_id, b"x" * 400_000)
        await admin.command(b"ZADD", admin.keys["waiting"], n * 2**42 + 2**41 + 1, job_id)
    assert len((await bench.store.do(bench.store.stats()))[11]) == 3 * 3


async def test_a_call_that_publishes_answers_no_more_than_its_page(bench: Bench) -> None:
    reply: list[bytes] = []
    for who in range(6):
        different = [word for n in range(PAGE) for word in (b"t%d" % n, b"%d%d" % (who, n) + b"x" * ROW_BYTES)]
        reply = await bench.store.do(bench.store.publish(f"w{who}", different, started=True))
    assert PAGE * 3 * ROW_BYTES <= size(reply) <= PAGE * 3 * (ROW_BYTES + 100)


def test_a_claim_is_bounded_too() -> None:
    assert CLAIM_BYTES <= 1 << 20
