"""Pydantic models as arguments and results."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from jobq import InvalidJob, Queue, UnreadableResult, Worker

if TYPE_CHECKING:
    from jobq import Connection


class Line(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    count: int = Field(ge=1)
    at: datetime | None = None


class Order(BaseModel):
    number: int = Field(alias="no")
    lines: list[Line] = []

    @field_validator("number")
    @classmethod
    def even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("must be even")
        return number


class Receipt(BaseModel):
    order: Order
    total: int


@pytest.fixture
def code(connection: Connection) -> Queue:
    queue = Queue("test", connection)

    @queue.task
    async def buy(order: Order, others: list[Order] = []) -> Receipt:  # noqa: B006 - each run has a copy
        assert all(type(one) is Order for one in (order, *others))
        return Receipt(order=order, total=sum(line.count for one in (order, *others) for line in one.lines))

    @queue.task
    async def wrong() -> Receipt:
        return {"total": "none"}  # pyright: ignore[reportReturnType] - a handler that breaks its word

    return queue


ORDER = Order(no=2, lines=[Line(name="a", count=3, at=datetime(2030, 1, 1))])


async def test_a_handler_takes_and_returns_pydantic_models(code: Queue) -> None:
    async with code, Worker(code) as worker:
        worker.start()
        jobs = [
            await code.tasks["buy"].enqueue(ORDER, others=[ORDER]),
            await code.tasks["buy"].enqueue(order={"no": 2, "lines": [{"name": "a", "count": 6}]}),
        ]
        results = [await job.result(timeout=10) for job in jobs]
        plain = await code.result(jobs[1].id)
    assert results[0] == Receipt(order=ORDER, total=6)
    assert (type(results[1]), results[1].total) == (Receipt, 6)
    assert b'"no":2' in bytes(plain), "results are stored as the model reads them"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"no": 3}, "no: Value error, must be even"),
        ({"no": "x"}, "no: Input should be a valid integer"),
        ({"no": 2, "lines": [{"name": 1, "count": 0}]}, "lines.0.name: Input should be a valid string; lines.0.count"),
        ({}, "no: Field required"),
        (5, "value: Input should be"),
    ],
)
async def test_arguments_that_do_not_fit_the_model_are_refused_at_enqueue(code: Queue, payload: Any, says: str) -> None:
    async with code:
        with pytest.raises(InvalidJob) as caught:
            await code.enqueue("buy", {"order": payload})
    assert says in str(caught.value)
    assert "$.order" in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_values_are_not_shown_in_errors(connection: Connection) -> None:
    class Login(BaseModel):
        password: SecretStr
        pin: int

    queue = Queue("test", connection)

    async def enter(login: Any) -> None: ...

    enter.__annotations__["login"] = Login
    queue.task(enter)
    async with queue:
        with pytest.raises(InvalidJob) as caught:
            await queue.enqueue("enter", {"login": {"password": 12345678, "pin": "hunter2"}})
    assert "12345678" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_result_that_does_not_fit_its_model_is_unreadable(code: Queue) -> None:
    async with code, Worker(code) as worker:
        worker.start()
        job = await code.tasks["wrong"].enqueue()
        with pytest.raises(UnreadableResult, match="order: Field required; total: Input should be a valid integer"):
            await job.result(timeout=10)


def test_the_schema_has_the_models_and_all_that_they_refer_to(code: Queue) -> None:
    schema = code.tasks["buy"].schema()
    order = schema["$defs"]["buy"]["properties"]["order"]
    assert order["properties"]["lines"]["items"] == {"$ref": "#/$defs/Order.Line"}
    assert schema["$defs"]["Order.Line"]["properties"]["count"]["minimum"] == 1


async def test_not_a_number_in_a_model_is_refused(connection: Connection) -> None:
    class Point(BaseModel):
        x: float

    async with Queue("test", connection) as queue:
        with pytest.raises(InvalidJob, match="nan cannot be encoded as JSON"):
            await queue.enqueue("any", {"at": Point(x=float("nan"))})


def test_pydantic_is_not_loaded_by_jobq() -> None:
    words = "import jobq, sys; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
