"""Invalid input is refused with a problem that names it, and never causes a 500."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession
from aiohttp.http_parser import DeflateBuffer
from rest import problem, serving

from jobq import Connection, Queue, create_app
from jobq.http import strict
from jobq.http.strict import MAX_DEPTH, BadJSON, check_body, check_json

if TYPE_CHECKING:
    from rest import Client, NewClient

JSON = {"Content-Type": "application/json"}
DEEP = MAX_DEPTH - 1  # The envelope is one more level.

BAD_JSON = {
    "empty": b"",
    "blank": b" \n ",
    "not JSON": b"hello",
    "cut": b'{"type": "a"',
    "trailing": b'{"type": "a"} x',
    "comma": b'{"type": "a",}',
    "single quotes": b"{'type': 'a'}",
    "comment": b'{"type": "a" /* */}',
    "BOM": b'\xef\xbb\xbf{"type": "a"}',
    "utf-16": '{"type": "a"}'.encode("utf-16"),
    "no UTF-8": b'{"type": "\xff"}',
    "overlong": b'{"type": "a", "payload": "\xc0\x80"}',
    "surrogate": b'{"type": "a", "payload": "\\ud800"}',
    "surrogate in UTF-8": b'{"type": "a", "payload": "\xed\xa0\x80"}',
    "surrogate key": b'{"type": "a", "payload": {"\\udc00": 1}}',
    "surrogate type": b'{"type": "\\ud800"}',
    "NaN": b'{"type": "a", "payload": NaN}',
    "Infinity": b'{"type": "a", "payload": [-Infinity]}',
    "beyond a double": b'{"type": "a", "payload": 1e999}',
    "5000 digits": b'{"type": "a", "payload": %b}' % (b"9" * 5000),
    "leading zero": b'{"type": "a", "payload": 01}',
    "control character": b'{"type": "a", "payload": "\x01"}',
    "bad escape": b'{"type": "a", "payload": "\\x"}',
    "key twice": b'{"type": "a", "type": "b"}',
    "key twice, escaped": b'{"type": "a", "payload": {"a": 1, "\\u0061": 2}}',
    "key twice, deep": b'{"type": "a", "payload": [{"a": {"b": 1, "b": 2}}]}',
    "key twice, colon escaped": b'{"type": "a", "payload": {"a": 1, "a": 2, "b": "\\u003a"}}',
    "too deep": b'{"type": "a", "payload": %b%b}' % (b"[" * (DEEP + 1), b"]" * (DEEP + 1)),
    "2000 levels": b'{"type": "a", "payload": %b%b}' % (b"[" * 2000, b"]" * 2000),
    "100000 levels": b'{"type": "a", "payload": %b' % (b"[" * 100_000),
    "NUL": b"\x00",
    "bulk cut": b'[{"type": "a"}',
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_bad_json_is_400(client: Client, text: bytes):
    await problem(await client.post("/jobs/enqueue", data=text, headers=JSON), 400, "invalid-json")
    assert (await (await client.get("/jobs/stats")).json())["waiting"] == 0


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_bad_json_is_400_wherever_a_body_is_read(client: Client, text: bytes):
    job = "main:00000000000000000"
    # No body counts as {}, because all fields of a request may be optional. Here one is not.
    status, kind = (400, "invalid-json") if text else (422, "missing-field")
    await problem(await client.post(f"/jobs/{job}/priority", data=text, headers=JSON), status, kind)


GOOD_JSON = [
    b"1e308", b"-0.0", b"12345678901234567890123", b'"\\ud83d\\ude00"', b'{"a":{"a":{"a":":"}}}',
    b'["{:}", "\\u003a", {"\\\\u003a":1}]',
    b'{"a":1,"A":2,"":3}', b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, b'{"a":"\\":\\":"}', b"{}",
    b'[1, [2, {"x": [3]}], {"x": null}]',
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD_JSON)
def test_sound_json_passes(text: bytes):
    check_json(text)


def test_depth_is_counted_exactly():
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        inner = b"1"
        check_json(opening * MAX_DEPTH + inner + closing * MAX_DEPTH)
        with pytest.raises(BadJSON, match=f"deeper than {MAX_DEPTH}"):
            check_json(opening * (MAX_DEPTH + 1) + inner + closing * (MAX_DEPTH + 1))
    check_json(json.dumps([[] for _ in range(5000)]).encode())


@pytest.mark.parametrize("text", [*BAD_JSON.values(), *GOOD_JSON])
@pytest.mark.parametrize("piece", [0, 1, 4, 10, 40])
async def test_a_large_text_is_judged_in_pieces_as_in_one(text: bytes, piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strict, "PIECE", piece)

    def as_one() -> bool:
        with contextlib.suppress(BadJSON):
            check_json(text)
            return True
        return False

    if as_one():
        await check_body(text)
    else:
        with pytest.raises(BadJSON):
            await check_body(text)


async def test_depth_is_counted_exactly_in_pieces(monkeypatch: pytest.MonkeyPatch):
    for piece in (0, 10, 150, 10_000):
        monkeypatch.setattr(strict, "PIECE", piece)
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[1,{"a":2,"b":', b"}]")):
            levels = MAX_DEPTH // len(closing)
            await check_body(opening * levels + b"1" + closing * levels)
            with pytest.raises(BadJSON, match=f"deeper than {MAX_DEPTH}"):
                await check_body(opening * levels + b"[]" + closing * levels)


FIELDS: list[tuple[Any, str, str]] = [
    ({}, "missing-field", "type"),
    ({"type": "a", "prio": 1}, "unknown-field", "prio"),
    ({"type": "a", "backoff": {"dealy": 1}}, "unknown-field", "backoff.dealy"),
    ({"type": "a", "we`ird": 1}, "unknown-field", "we`ird"),
    ({"type": 1}, "invalid-field", "type"),
    ({"type": None}, "invalid-field", "type"),
    ({"type": ""}, "invalid-field", "type"),
    ({"type": "x" * 129}, "invalid-field", "type"),
    ({"type": "a", "priority": 1024}, "invalid-field", "priority"),
    ({"type": "a", "priority": -1025}, "invalid-field", "priority"),
    ({"type": "a", "priority": 1.5}, "invalid-field", "priority"),
    ({"type": "a", "priority": "1"}, "invalid-field", "priority"),
    ({"type": "a", "priority": True}, "invalid-field", "priority"),
    ({"type": "a", "priority": None}, "invalid-field", "priority"),
    ({"type": "a", "priority": 10**30}, "invalid-field", "priority"),
    ({"type": "a", "delay": -1}, "invalid-field", "delay"),
    ({"type": "a", "delay": 10**12}, "invalid-field", "delay"),
    ({"type": "a", "attempts": 0}, "invalid-field", "attempts"),
    ({"type": "a", "attempts": 1001}, "invalid-field", "attempts"),
    ({"type": "a", "timeout": 0}, "invalid-field", "timeout"),
    ({"type": "a", "retention": -1}, "invalid-field", "retention"),
    ({"type": "a", "lifo": 1}, "invalid-field", "lifo"),
    ({"type": "a", "key": ""}, "invalid-field", "key"),
    ({"type": "a", "key": "k" * 513}, "invalid-field", "key"),
    ({"type": "a", "key_ttl": 0, "key": "k"}, "invalid-field", "key_ttl"),
    ({"type": "a", "metadata": []}, "invalid-field", "metadata"),
    ({"type": "a", "backoff": "fixed"}, "invalid-field", "backoff"),
    ({"type": "a", "backoff": {"type": "linear"}}, "invalid-field", "backoff.type"),
    ({"type": "a", "backoff": {"jitter": 2}}, "invalid-field", "backoff.jitter"),
    ({"type": "a", "backoff": {"delay": -1}}, "invalid-field", "backoff.delay"),
    ({"type": "a\n"}, "invalid-job", ""),
    ({"type": "a", "key": "a\x00b"}, "invalid-job", ""),
    ({"type": "a", "key": "\u00e9" * 300}, "invalid-job", ""),
    ({"type": "a", "key_ttl": 5}, "invalid-job", ""),
    ("text", "invalid-field", ""),
    (7, "invalid-field", ""),
    (None, "invalid-field", ""),
]


@pytest.mark.parametrize(("body", "slug", "field"), FIELDS, ids=[json.dumps(body)[:60] for body, _, _ in FIELDS])
async def test_fields_are_refused_by_name(client: Client, body: Any, slug: str, field: str):
    answer = await problem(await client.post("/jobs/enqueue", data=json.dumps(body), headers=JSON), 422, slug)
    assert answer.get("field", "") == field
    assert field in answer["detail"]
    assert (await (await client.get("/jobs/stats")).json())["waiting"] == 0
    bulk = await client.post("/jobs/enqueue", json=[body])
    assert bulk.status == 207
    assert (await bulk.json()) == [answer]


QUERIES = [
    ("/jobs?state=nowhere", "invalid-field"), ("/jobs?limit=0", "invalid-field"), ("/jobs?limit=501", "invalid-field"),
    ("/jobs?limit=x", "invalid-field"), ("/jobs?limit=", "invalid-field"), ("/jobs?limit=1_0", "invalid-field"),
    ("/jobs?limit=99999999999999999999999", "invalid-field"), ("/jobs?colour=red", "unknown-field"),
    ("/jobs?limit=1&limit=2", "invalid-query"), ("/jobs?cursor=nonsense", "invalid-query"),
    ("/jobs?cursor=%00", "invalid-query"),
    ("/jobs?cursor=%FF", "invalid-query"), ("/jobs?cursor=e30", "invalid-query"),
    ("/jobs/failed/jobs?limit=-1", "invalid-field"),
    ("/jobs/failed/jobs?state=failed", "unknown-field"), ("/jobs?type=" + "x" * 200, "invalid-field"),
    ("/jobs/main:00000000000000000/result?wait=60001", "invalid-field"),
    ("/jobs/main:00000000000000000/result?wait=-1", "invalid-field"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "slug"), QUERIES)
async def test_queries_are_refused(client: Client, path: str, slug: str):
    await problem(await client.get(path), 422, slug)


async def test_a_state_that_does_not_exist_is_answered_with_those_that_do(client: Client):
    told = await problem(await client.get("/jobs?state=faild"), 422, "invalid-field")
    states = "waiting, delayed, active, completed, failed, blocked, held"
    assert told["detail"] == f"state: Invalid enum value 'faild'; it takes {states}"


MANY = [
    ("DELETE", "/jobs", "missing-field"), ("DELETE", "/jobs?state=active", "invalid-field"),
    ("DELETE", "/jobs?state=failed&older_than=-1", "invalid-field"),
    ("DELETE", "/jobs?state=failed&limit=10001", "invalid-field"),
    ("POST", "/jobs/retry?state=waiting", "invalid-field"), ("POST", "/jobs/retry?states=failed", "unknown-field"),
    ("DELETE", "/jobs?state=waiting&older_than=5", "invalid-query"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "slug"), MANY)
async def test_wrong_parameters_of_verbs_for_many_jobs_are_refused(client: Client, method: str, path: str, slug: str):
    await problem(await client.request(method, path), 422, slug)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "application/jsonx", ""],
)
async def test_other_content_types_are_415(client: Client, kind: str):
    response = await client.post("/jobs/enqueue", data=b'{"type":"a"}', headers={"Content-Type": kind})
    await problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json ;"]
)
async def test_content_types_that_say_json(client: Client, kind: str):
    response = await client.post("/jobs/enqueue", data=b'{"type":"a"}', headers={"Content-Type": kind})
    assert response.status == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\u00e9"])
async def test_idempotency_keys_are_bounded(client: Client, key: str):
    response = await client.post("/jobs/enqueue", json={"type": "a"}, headers={"Idempotency-Key": key})
    await problem(response, 422, "invalid-job")


async def test_the_largest_payload_passes_and_one_byte_more_does_not(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection, max_payload=1000))
    fits = json.dumps("x" * 998)
    response = await client.post("/jobs/enqueue", data=f'{{"type":"a","payload":{fits}}}', headers=JSON)
    assert response.status == 201
    over = json.dumps("x" * 999)
    response = await client.post("/jobs/enqueue", data=f'{{"type":"a","payload":{over}}}', headers=JSON)
    body = await problem(response, 413, "too-large")
    assert (body["size"], body["limit"]) == (1001, 1000)


async def test_a_body_over_the_limit_is_413(new_client: NewClient, connection: Connection):
    client = await new_client(Queue("main", connection), max_body=100_000)
    exact = b'{"type":"a","payload":"' + b"x" * (100_000 - 25) + b'"}'
    assert (await client.post("/jobs/enqueue", data=exact, headers=JSON)).status == 201
    assert (await problem(await client.post("/jobs/enqueue", data=exact + b" ", headers=JSON), 413, "too-large"))[
        "limit"
    ]

    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 10_000

    # The length of the body is not announced.
    response = await client.post("/jobs/enqueue", data=chunks(), headers=JSON)
    await problem(response, 413, "too-large")


PACKED = {
    "gzip": gzip.compress(b" " * 50_000_000),
    "deflate": zlib.compress(b" " * 50_000_000),
    "br": b"anything",
    "identity, gzip": gzip.compress(b'{"type":"a"}'),
    "GZip": gzip.compress(b'{"type":"a"}'),
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_a_compressed_body_is_415_and_is_not_inflated(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    inflated: list[int] = []
    monkeypatch.setattr(DeflateBuffer, "feed_data", lambda _, chunk, *more: inflated.append(len(chunk)) or True)
    async with serving(create_app(Queue("main", connection))) as served, ClientSession() as session:
        base = f"http://127.0.0.1:{served.port}"
        for path in ("/jobs/enqueue", "/jobs/main:00000000000000000/priority", "/dashboard/login"):
            response = await session.post(
                base + path, data=PACKED[encoding], headers=JSON | {"Content-Encoding": encoding}
            )
            await problem(response, 415, "unsupported-media-type")
            assert response.headers["Accept-Encoding"] == "identity"
        response = await session.post(
            base + "/jobs/enqueue", data=b'{"type":"a"}', headers=JSON | {"Content-Encoding": "identity"}
        )
        assert response.status == 201
    assert not inflated


async def test_under_a_server_that_inflates_a_compressed_body_is_415_too(client: Client):
    headers = JSON | {"Content-Encoding": "gzip"}
    for body in (gzip.compress(b'{"type":"a"}'), PACKED["gzip"], b"no gzip at all"):
        response = await client.post("/jobs/enqueue", data=body, headers=headers)
        assert response.status in (400, 415)


MANY_AND_LARGE = {
    "too many": (b"[%b]" % b",".join([b"{}"] * 1_000_000), 413, "too-large"),
    "payload": (b'{"type":"a","payload":[%b]}' % b",".join([b"[]"] * 500_000), 413, "too-large"),
    "metadata": (
        b'{"type":"a","metadata":{%b}}' % b",".join(b'"k%d":[]' % n for n in range(200_000)),
        413,
        "too-large",
    ),
    "unknown field": (b'{"type":"a","%b":1}' % (b"//a://a:" * 250_000), 422, "unknown-field"),
    "type": (b'{"type":"%b"}' % (b"x" * 2_000_000), 422, "invalid-field"),
}


@pytest.mark.parametrize("name", MANY_AND_LARGE)
async def test_a_body_that_is_refused_for_its_size_is_not_checked_further(
    client: Client, monkeypatch: pytest.MonkeyPatch, name: str
):
    body, status, slug = MANY_AND_LARGE[name]
    checked: list[int] = []
    monkeypatch.setattr("jobq.http.strict.check_json", lambda text, *_: checked.append(len(text)))
    monkeypatch.setattr("jobq.http.enqueue.check_json", lambda text, *_: checked.append(len(text)))
    response = await client.post("/jobs/enqueue", data=io.BytesIO(body), headers=JSON)
    found = await problem(response, status, slug)
    assert not checked
    assert len(found["detail"]) < 500


async def test_metadata_is_an_object_or_null(client: Client):
    for metadata in ({"a": 1}, {}, None):
        assert (await client.post("/jobs/enqueue", json={"type": "a", "metadata": metadata})).status == 201
    for metadata in ([], "x", 1):
        response = await client.post("/jobs/enqueue", json={"type": "a", "metadata": metadata})
        assert (await problem(response, 422, "invalid-field"))["field"] == "metadata"
