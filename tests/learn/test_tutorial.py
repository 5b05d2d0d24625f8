"""Each step of docs/tutorial.md runs, and does what the page says."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from console import ROOT

from jobq import Worker
from jobq.testing import drain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

FOLDER = ROOT / "examples" / "tutorial"
PAGES = [ROOT / "docs" / "quickstart.md", ROOT / "docs" / "tutorial.md"]


@pytest.fixture(autouse=True)
def modules(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of the tutorial can be imported, and use the server of the test."""
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if re.fullmatch(r"shop\d|test_shop", name)]:
        del sys.modules[name]


async def test_step_1_tries_again(capsys: pytest.CaptureFixture[str]):
    await importlib.import_module("shop1").main()
    assert capsys.readouterr().out == "sent 'Welcome' to ada@example.com in attempt 2\n"


async def test_step_2_makes_one_job_of_two_requests():
    async with TestClient(TestServer(importlib.import_module("shop2").make_app())) as client:
        answers = [await (await client.post("/signups", json={"to": "ada@example.com"})).json() for _ in range(2)]
        assert answers[0]["job"] == answers[1]["job"]
        assert [answer["duplicate"] for answer in answers] == [False, True]
        result = await client.get(f"/jobq/jobs/{answers[0]['job']}/result?wait=10000")
        assert await result.json() == "sent 'Welcome' to ada@example.com"


async def test_step_3_writes_a_report():
    async with TestClient(TestServer(importlib.import_module("shop3").make_app())) as client:
        at = (await (await client.post("/tenants/acme/reports", json=[19.5, 20.5])).json())["at"]
        answer = await client.get(at)
        while answer.status == 202:
            answer = await client.get(at)
        assert await answer.json() == {"tenant": "acme", "orders": 2, "total": 40.0}
        row = await (await client.get(f"/jobq/jobs/shop:{at.rpartition('/')[2]}")).json()
        assert row["progress"] == {"done": 2, "of": 2}
        assert (await client.get("/reports/nothing")).status == 404


async def test_step_4_books_each_event_once_and_in_order():
    shop = importlib.import_module("shop4")

    async def send(client: TestClient[Any, Any], event: int, kind: str, cents: int) -> dict[str, Any]:
        body = b'{"event":"%d","customer":"ada","kind":"%s","cents":%d}' % (event, kind.encode(), cents)
        signature = hmac.new(shop.SECRET, body, hashlib.sha256).hexdigest()
        answer = await client.post("/webhooks/payments", data=body, headers={"X-Signature": signature})
        assert answer.status == 202
        return await answer.json()

    async with TestClient(TestServer(shop.make_app())) as client:
        jobs = [await send(client, n, "paid", 100) for n in range(5)]
        assert (await send(client, 0, "paid", 100))["duplicate"]
        refund = await send(client, 5, "refunded", 50)
        wrong = await send(client, 6, "paid", 0)
        assert await (await client.get(f"/jobq/jobs/{refund['job']}/result?wait=10000")).json() == 450
        booked = [await (await client.get(f"/jobq/jobs/{job['job']}/result?wait=10000")).json() for job in jobs]
        assert booked == [100, 200, 300, 400, 500]
        failed = await client.get(f"/jobq/jobs/{wrong['job']}/result?wait=10000")
        assert "another attempt would not change that" in (await failed.json())["detail"]
        unsigned = await client.post("/webhooks/payments", data=b"{}")
        assert unsigned.status == 401


async def test_step_5_enqueues_a_report_for_each_tenant(until: Callable[..., Awaitable[None]]):
    shop = importlib.import_module("shop5")
    async with shop.queue, Worker(shop.queue) as worker:
        worker.start()
        await until(shop.queue.schedules, "the worker to write the schedules of its code")
        first = await shop.queue.run_schedule("nightly")
        assert await first.result(timeout=10) == 2
        assert (await drain(shop.queue)).failed == 0
        assert (await shop.queue.stats()).completed_total == 3


async def test_step_6_is_a_test_that_passes(redis_url: str):
    await importlib.import_module("test_shop").test_each_tenant_gets_a_report(redis_url)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_the_page_is_that_of_the_examples(page: Path):
    blocks = re.findall(r"^```python\n# (examples/\S+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    for path, code in blocks:
        assert code in (ROOT / path).read_text(), f"{page.name} shows other code than {path}"
