"""Payloads of 1 MB and 10 MB come back unchanged, one byte over the limit is refused, and other requests are served."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from rest import problem, working

from jobq import Connection, Queue
from jobq.errors import PayloadTooLarge

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from rest import Client, NewClient

SIZES = pytest.mark.parametrize("size", [1_000_000, 10_000_000], ids=["1MB", "10MB"])
WORST = 1.0
"""CPU seconds that this process may use while it answers a small enqueue beside large ones. One check of the whole
text would use more. Other processes of a busy machine do not count."""


def payload_of(size: int) -> bytes:
    """JSON of this size, written as none of our encoders would: with spaces, escapes, and all kinds of characters."""
    start = b'{ "data" : "\\u0000\\ud83d\\ude00 \\/'
    text = "".join(map(chr, [*range(0x20, 0x22), *range(0x23, 0x5C), *range(0x5D, 0xD800), 0x10FFFF])).encode()
    room = size - len(start) - len(b'"}')
    filled = text * (room // len(text))
    return start + filled + b"x" * (room - len(filled)) + b'"}'


async def post(client: Client, body: bytes) -> ClientResponse:
    # From a file. aiohttp would send bytes in one piece, which blocks the loop that client and server share.
    return await client.post("/jobs/enqueue", data=io.BytesIO(body), headers={"Content-Type": "application/json"})


def same(found: Any, expected: Any) -> None:
    """Compare texts that are too large for pytest to print."""
    equal = found == expected
    assert equal, f"{len(found)} and {len(expected)} long: {found[:50]!r}... and {expected[:50]!r}..."


async def written_of(client: Client, job: str) -> bytes:
    """A job's payload as REST shows it, unchanged."""
    row = await (await client.get(f"/jobs/{job}")).read()
    return bytes(msgspec.json.decode(row, type=dict[str, msgspec.Raw])["payload"])


def echoing(connection: Connection, size: int) -> Queue:
    queue = Queue("main", connection, max_payload=size, max_result=size)

    @queue.task
    async def echo(data: str) -> str:
        return data

    return queue


@SIZES
async def test_the_largest_payload_passes_through_rest_and_a_worker(
    new_client: NewClient, connection: Connection, size: int
):
    queue = echoing(connection, size)
    client = await new_client(queue)
    payload = payload_of(size)
    assert len(payload) == size
    async with working(queue):
        response = await post(client, b'{"type":"echo","payload":%b}' % payload)
        assert response.status == 201, await response.text()
        job = (await response.json())["id"]
        result = await client.get(f"/jobs/{job}/result?wait=30000")
        same(await result.json(), json.loads(payload)["data"])
    same(await written_of(client, job), payload)

    over = b'{"type":"echo","payload":%b}' % payload.replace(b"{ ", b"{  ", 1)
    body = await problem(await post(client, over), 413, "too-large")
    assert (body["size"], body["limit"]) == (size + 1, size)


@SIZES
async def test_the_largest_payload_passes_through_python_and_a_worker(connection: Connection, size: int):
    queue = echoing(connection, size)
    payload = payload_of(size)
    async with queue, working(queue):
        job = await queue.enqueue("echo", msgspec.Raw(payload))
        same(await job.result(timeout=30), json.loads(payload)["data"])
        same(bytes((await queue.get(job.id)).payload), payload)
        with pytest.raises(PayloadTooLarge) as refused:
            await queue.enqueue("echo", msgspec.Raw(payload.replace(b"{ ", b"{  ", 1)))
        assert (refused.value.size, refused.value.limit) == (size + 1, size)


ROWS = [{"id": n, "name": f"row {n}", "tags": ["a", "b"], "value": n * 1.5} for n in range(130_000)]
LARGE = {
    "one string": b'"%b"' % (b"x" * 9_900_000),
    "rows": json.dumps({"rows": ROWS}).encode(),
    "numbers": b"[%b]" % b",".join(b"%d" % (n % 1000) for n in range(2_500_000)),
    # An escaped colon makes the check for equal keys slow, most of all in a key of a large object.
    "escape": b'["\\u003a",%b]' % b",".join(b'{"key %d":{"a":1}}' % n for n in range(350_000)),
    "escape in a key": b'{"\\u003a":0,%b}' % b",".join(b'"key %d":{"a":1}' % n for n in range(350_000)),
}


@pytest.mark.parametrize("payload", LARGE.values(), ids=LARGE.keys())
async def test_other_requests_are_served_during_requests_of_megabytes(
    new_client: NewClient, connection: Connection, payload: bytes
):
    assert 5_000_000 < len(payload) < 10_000_000
    client = await new_client(Queue("main", connection, max_payload=10_000_000))
    took: list[float] = []

    async def small() -> None:
        while True:
            began = time.process_time()
            response = await client.post("/jobs/enqueue", json={"type": "small"})
            assert response.status == 201
            took.append(time.process_time() - began)

    others = asyncio.create_task(small())
    try:
        response = await post(client, b'{"type":"large","payload":%b}' % payload)
        assert response.status == 201, (await response.text())[:200]
        same(await written_of(client, (await response.json())["id"]), payload)
        assert not others.done()
    finally:
        others.cancel()
    assert len(took) > 3
    assert max(took) < WORST
