"""A producer without the handlers' code gets the options that workers publish."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from jobq import Backoff, InvalidJob, Queue, Worker
from jobq.engine.model.job import Options
from jobq.engine.model.types import ROW_BYTES, TypeRow
from jobq.engine.queue import published
from jobq.engine.queue.published import Publisher

if TYPE_CHECKING:
    from jobq import Connection
    from tests.conftest import Until

OPTIONS: dict[str, Any] = {"attempts": 7, "timeout": 30, "backoff": Backoff("fixed", 5), "priority": 3, "delay": 60}


def with_code(connection: Connection, **given: Any) -> Queue:
    queue = Queue("test", connection)

    @queue.task(**given)
    async def send(to: str, copies: int = 1) -> None: ...

    return queue


async def publish(queue: Queue, name: str) -> None:
    async with queue:
        await Publisher(queue.tasks, queue.rules, queue.name, name).publish(queue.store)


async def test_a_worker_publishes_when_it_starts(connection: Connection, queue: Queue, until: Until) -> None:
    code = with_code(connection, **OPTIONS)
    async with code, Worker(code, name="w1") as worker:
        worker.start()
        await until(queue.types, "a published type")
    (row,) = await queue.types()
    assert (row.type, row.publisher, row.differing) == ("send", worker.name, [])
    assert row.options == code.tasks["send"].defaults
    assert row.schema == code.tasks["send"].schema()


async def test_a_producer_without_code_uses_the_published_options(connection: Connection, queue: Queue) -> None:
    await publish(with_code(connection, **OPTIONS), "w1")
    jobs = [
        await queue.enqueue("send", {"to": "a"}),
        *await queue.enqueue_many([queue.new("send", {"to": "a"}, attempts=2), queue.new("other", delay=5)]),
    ]
    rows = [await job.row() for job in jobs]
    assert [(row.attempts, row.timeout, row.priority, row.delay) for row in rows] == [
        (7, 30_000, 3, 60_000),
        (2, 30_000, 3, 60_000),
        (3, None, 0, 5_000),
    ]
    assert rows[0].backoff == Backoff("fixed", 5).stored()


async def test_a_given_option_is_used_even_if_it_equals_the_default(connection: Connection, queue: Queue) -> None:
    await publish(with_code(connection, **OPTIONS), "w1")
    row = await (await queue.enqueue("send", {"to": "a"}, attempts=3, timeout=None, delay=0, priority=0)).row()
    assert (row.attempts, row.timeout, row.delay, row.priority, row.state) == (3, None, 0, 0, "waiting")


async def test_a_type_is_looked_up_once_and_then_in_the_background(
    connection: Connection, queue: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    types = queue.store.types

    async def counted(names: list[str]) -> Any:
        asked.append(list(names))
        return await types(names)

    monkeypatch.setattr(queue.store, "types", counted)
    for _ in range(3):
        await queue.enqueue("send")
    assert asked == [["send"]]
    await publish(with_code(connection, attempts=9), "w1")
    monkeypatch.setattr(published, "FRESH_SECONDS", -1.0)  # From now on the known options count as old.
    queue._sessions.here.defaults._old = 0.0  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    await queue.enqueue("send")
    await until(lambda: len(asked) > 1, "a lookup in the background")

    async def new_ones_are_used() -> bool:
        return (await (await queue.enqueue("send")).row()).attempts == 9

    await until(new_ones_are_used, "the new options")


async def test_names_of_types_are_not_kept_without_bound(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "KNOWN_MAX", 10)
    for n in range(25):
        await queue.enqueue(f"t{n}")
    assert len(queue._sessions.here.defaults._known) <= 10  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def test_a_difference_is_logged_with_both_names_and_shown(
    connection: Connection, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(with_code(connection, attempts=2, backoff=[1]), "w1")
    newer = with_code(connection, attempts=5, backoff=[2])
    caplog.set_level(logging.WARNING, "jobq")
    async with newer:
        publisher = Publisher(newer.tasks, newer.rules, newer.name, "w2")
        for _ in range(3):
            await publisher.publish(newer.store)
    (line,) = [record.getMessage() for record in caplog.records if "publish different" in record.getMessage()]
    assert "w2 and w1 publish different options or schemas of type send:" in line
    assert line.endswith(
        "attempts 5 against 2, backoff.delays (2000,) against (1000,). Producers without the code use those of whoever"
        " started last."
    )
    (row,) = await queue.types()
    assert (row.publisher, row.options.attempts) == ("w2", 5)
    assert [(one.publisher, one.options.attempts) for one in row.differing] == [("w1", 2)]


async def test_published_rows_that_cannot_be_used_are_ignored(queue: Queue) -> None:
    bad = {"a": b"x", "b": b"1\tw\t{", "c": b'1\tw\t{"options":{"attempts":0}}', "d": b"\xff\t\xff\t\xff"}
    for name, row in bad.items():
        await queue.store.command(b"HSET", queue.store.keys["types"], name, row)
    assert await queue.types() == []
    for name in bad:
        assert (await (await queue.enqueue(name)).row()).attempts == 3


async def test_published_types_are_bounded_in_bytes(connection: Connection, queue: Queue) -> None:
    code = Queue("test", connection)
    many = msgspec.defstruct("Wide", [(f"field_{n}", str) for n in range(1000)])

    async def wide(it: Any) -> None: ...

    wide.__annotations__["it"] = many
    code.task(attempts=4)(wide)
    code.task(name="large", metadata={"text": "x" * ROW_BYTES})(wide)
    await publish(code, "w\t1\n")
    (row,) = await queue.types()
    assert row == TypeRow("wide", "w 1 ", row.seen, Options(attempts=4), None)


async def test_a_type_that_is_no_name_is_refused_before_it_is_looked_up(queue: Queue) -> None:
    for name in ("\ud800", "a\nb", ""):
        with pytest.raises(InvalidJob, match="1 to 128 printable characters"):
            await queue.enqueue(name)
