"""Redis stores payloads, results, errors and keys byte for byte, because no script decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from jobq.engine.model.job import Result

if TYPE_CHECKING:
    from table import Bench

    from jobq import Queue

BINARY = bytes(range(256)) + b"\r\n\0" + bytes(reversed(range(256)))
DOCUMENTS = [
    b"[]",
    b"{}",
    b"[[],{}]",
    b"null",
    b'""',
    b"12345678901234567890123456789",
    b"9007199254740993",
    b"0.1",
    b"-0.0",
    b"1e-320",
    b'{"a":{},"b":[],"a2":1e3}',
    '"\u00e9 \u20ac \U0001f600"'.encode(),
    rb'"\u0000\n\ud83d\ude00"',
    b"[" * 500 + b"]" * 500,
]


async def test_any_bytes(bench: Bench):
    do, store = bench.store.do, bench.store
    await do(store.enqueue(["a", BINARY, ""]))
    claimed = await do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    assert claimed.specs == [BINARY]
    await do(store.progress(["a", claimed.token, BINARY]))
    await do(store.log(["a", claimed.token, 0, 1, BINARY]))
    await do(store.reschedule(["a", claimed.token, 1, 0, BINARY]))
    await do(store.forward(1))
    claimed = await do(store.claim(1, 30_000, "w", "w:0", 2, repeated=False))
    assert claimed is not None
    await do(store.complete(["a", claimed.token, BINARY, ""], []))
    row = (await do(store.rows(["a"])))[0]
    assert (row[3], row[6], row[7], row[8]) == (BINARY, BINARY, BINARY, BINARY)
    assert await do(store.results(["a"])) == [b"completed", BINARY]
    assert await store.logs("a") == BINARY


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document[:20].decode())
async def test_json_of_any_kind(document: bytes, queue: Queue):
    """Encoded values come back unchanged through enqueue, a claim, a result and the readers."""
    job = await queue.enqueue("x", msgspec.Raw(document), metadata={"kept": True})
    store = queue.store
    claimed = await store.do(store.claim(1, 30_000, "w", "w:0", 1, repeated=False))
    assert claimed is not None
    spec = claimed.specs[0] or b""
    assert b'"payload":' + document + b"," in spec
    row = msgspec.json.encode(Result(started=1, ran=2, worker="w", result=msgspec.Raw(document)))
    await store.do(store.complete([job.id, claimed.token, row, ""], []))
    read = await queue.get(job.id)
    assert bytes(read.payload) == document
    assert read.result is not None
    assert bytes(read.result) == document
    assert bytes(await queue.result(job.id)) == document
