"""Webhooks: what is delivered and signed, in which order, what is refused, and what happens when something dies."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
import standardwebhooks
from aiohttp import web

from jobq import (
    Connection,
    InvalidJob,
    InvalidQuery,
    Queue,
    SettingsError,
    State,
    StoreUnavailable,
    WebhookNotFound,
    Worker,
    webhooks,
)
from jobq.engine.model.webhook import Secret, Webhook, signed_headers
from jobq.engine.queue import announce
from jobq.engine.queue import webhooks as webhook_verbs
from jobq.engine.queue.announce import Announcer
from jobq.engine.queue.webhooks import read_webhook
from jobq.webhooks import AddressRefused, Guard, deliver_webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Until


class Receiver:
    """A service that is told. It answers with ``status``, or as ``answers`` says for the next requests."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.answers: list[Callable[[], Any]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.got.append((dict(request.headers), body))
        if self.answers:
            found = self.answers.pop(0)()
            return await found if asyncio.iscoroutine(found) else found
        return web.Response(status=self.status, text="thanks")

    @property
    def told(self) -> list[tuple[str, str]]:
        """Type of event and id of job, of each request."""
        return [(body["type"], body["data"].get("id", "")) for body in (json.loads(raw) for _, raw in self.got)]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/hook", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOK", 0.02)
    monkeypatch.setattr(announce, "LOOK", 0.02)
    monkeypatch.setattr(webhooks, "BACKOFF", [0.01])
    monkeypatch.setattr(webhooks, "GRACE", 0.1)


@asynccontextmanager
async def delivering(queue: Queue, allow: str | None = "127.0.0.0/8") -> AsyncIterator[Queue]:
    """Deliver during the block. The value is the queue of the deliveries."""
    async with queue.webhook_queue() as deliveries:
        task = asyncio.create_task(deliver_webhooks(queue, allow=allow))
        try:
            yield deliveries
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception():
                raise task.exception() or AssertionError


async def test_a_delivery_is_signed_as_the_standard_says(queue: Queue, receiver: Receiver, until: Until) -> None:
    hook = await queue.put_webhook("crm", receiver.url, events=["killed"])
    assert hook.secret is not None
    async with delivering(queue):
        job = await queue.enqueue("mail", {"to": "a secret address"}, metadata={"order": 7})
        await job.kill()
        await until(lambda: receiver.got, "the delivery")
    ((headers, body),) = receiver.got
    found = standardwebhooks.Webhook(hook.secret).verify(body, {name.lower(): value for name, value in headers.items()})
    assert found["type"] == "job.killed"
    data = found["data"]
    assert (data["id"], data["queue"], data["type"], data["metadata"]) == (
        f"test:{job.id}",
        "test",
        "mail",
        {"order": 7},
    )
    assert data["error"]["type"] == "Killed"
    assert b"secret address" not in body, "payloads are not sent"
    assert headers["Content-Type"] == "application/json"


def test_the_example_of_the_standard() -> None:
    """From the specification's own tests."""
    secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330_000, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_both_secrets_sign_for_a_day_after_a_rotation(queue: Queue, receiver: Receiver, until: Until) -> None:
    old = (await queue.put_webhook("crm", receiver.url)).secret
    assert (await queue.put_webhook("crm", receiver.url)).secret is None, "it keeps its secret"
    new = (await queue.rotate_webhook("crm")).secret
    async with delivering(queue):
        await queue.test_webhook("crm")
        await until(lambda: receiver.got, "the delivery")
    ((headers, body),) = receiver.got
    for secret in (old, new):
        standardwebhooks.Webhook(secret or "").verify(body, {name.lower(): value for name, value in headers.items()})
    assert receiver.told == [("webhook.test", "")]
    later = [Secret(new or ""), Secret(old or "", until=1000)]
    assert " " not in signed_headers(later, "m", 2000, b"")["webhook-signature"]


async def test_only_what_a_webhook_wants_is_delivered(queue: Queue, receiver: Receiver, until: Until) -> None:
    await queue.put_webhook("crm", receiver.url, events=["removed", "killed"], types=["mail"])
    async with delivering(queue) as deliveries:
        other, mail, last = [await queue.enqueue(one) for one in ("other", "mail", "mail")]
        await other.kill()
        await mail.kill()
        await queue.retry(mail.id)
        await last.kill()
        await until(lambda: len(receiver.got) == 2, "the deliveries")
        assert sorted(receiver.told) == sorted(("job.killed", f"test:{one.id}") for one in (mail, last))
        assert len((await deliveries.page()).jobs) == 2


async def test_a_failed_delivery_is_tried_again_and_later_ones_of_the_job_wait(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AGAIN", 0.01)
    await queue.put_webhook("crm", receiver.url, events=["killed", "retried"])
    receiver.answers = [lambda: web.Response(status=500, text="broken\x1b[31m")] * 3
    async with delivering(queue) as deliveries:
        job = await queue.enqueue("mail")
        for _ in range(3):
            await job.kill()
            await queue.retry(job.id)
        await until(lambda: len(receiver.got) >= 9, "the deliveries")
    told = [kind for kind, _ in receiver.told]
    assert told == ["job.killed"] * 4 + ["job.retried"] + ["job.killed", "job.retried"] * 2
    async with deliveries:
        page = await deliveries.page()
        failed = next(row for row in page.jobs if row.errors)
        assert "the address answered 500: broken\\x1b[31m" in failed.errors[0].message
        ids = {headers["webhook-id"] for headers, _ in receiver.got[:4]}
        assert ids == {failed.id}, "a receiver can tell that it is the same delivery"


async def test_deliveries_are_made_once_although_the_follower_dies(
    queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after it has enqueued, and before it stores how far it has come."""
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    jobs = [await queue.enqueue("mail") for _ in range(5)]
    for job in jobs:
        await job.kill()
    async with queue.webhook_queue() as deliveries:
        for _ in range(3):
            announcer = Announcer(queue, deliveries)
            turn = announcer._turn  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

            async def dies(fence: int = 0, cursor: str = "", *, turn: Any = turn) -> Any:
                page = await deliveries.page()
                if cursor and page.jobs:
                    raise Dies
                return await turn()

            monkeypatch.setattr(announcer, "_turn", dies)
            with pytest.raises(Dies):
                await announcer.run()
            # Its time is over.
            await queue.store.command(b"HDEL", queue.store.keys["webhook_facts"], b"follower")
        page = await deliveries.page()
        assert sorted((row.metadata or {})["job"] for row in page.jobs) == sorted(job.id for job in jobs)


class Dies(BaseException):
    """The end of a process."""


async def test_one_process_follows_at_a_time(queue: Queue, receiver: Receiver, until: Until) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    async with delivering(queue), delivering(queue):
        jobs = [await queue.enqueue("mail") for _ in range(10)]
        for job in jobs:
            await job.kill()
        await until(lambda: len(receiver.got) >= 10, "the deliveries")
        await asyncio.sleep(0.05)
        assert sorted(job for _, job in receiver.told) == sorted(f"test:{job.id}" for job in jobs)


async def test_ends_that_the_stream_has_dropped_are_found_in_the_jobs(
    queue: Queue, receiver: Receiver, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put_webhook("crm", receiver.url)
    job = await queue.enqueue("mail")
    await job.kill()
    fields = [b"XADD", queue.store.keys["events"], b"MAXLEN", b"~", 1000, b"*", b"removed", b"x"]
    await queue.store.commands(*([tuple(fields)] * 1300))
    async with delivering(queue):
        await until(lambda: receiver.got, "the delivery")
    assert receiver.told == [("job.killed", f"test:{job.id}")]
    assert "were dropped before they were passed on to webhooks: 1 ends of jobs" in caplog.text


async def test_a_webhook_is_told_of_what_comes_after_it_was_made(
    queue: Queue, receiver: Receiver, until: Until
) -> None:
    """Whatever another webhook has left, whoever follows, and without waiting for the follower."""
    await queue.put_webhook("first", receiver.url, events=["killed"])
    async with delivering(queue) as deliveries:
        before = await queue.enqueue("mail", delay=60)
        await before.kill()
        await until(lambda: len(receiver.got) == 1, "the delivery")
        await queue.put_webhook("second", receiver.url, events=["killed"])
        both = await queue.enqueue("mail", delay=60)
        await both.kill()
        await until(lambda: len(receiver.got) == 3, "the deliveries of both")
        for name in ("first", "second"):
            await queue.delete_webhook(name)
        unheard = await queue.enqueue("mail", delay=60)
        await unheard.kill()
        await queue.put_webhook("third", receiver.url, events=["killed"])
        last = await queue.enqueue("mail", delay=60)
        await last.kill()
        await until(lambda: len(receiver.got) == 4, "the delivery of the third")
        ids = {row.id.partition("~")[0]: (row.metadata or {})["job"] for row in (await deliveries.page()).jobs}
        assert ids["third"] == last.id
        assert unheard.id not in {job for _, job in receiver.told}
        # Nobody is told of what happened while it was disabled.
        await queue.put_webhook("third", receiver.url, events=["killed"], enabled=False)
        await (await queue.enqueue("mail", delay=60)).kill()
        await queue.put_webhook("third", receiver.url, events=["killed"])
        final = await queue.enqueue("mail", delay=60)
        await final.kill()
        await until(lambda: len(receiver.got) == 5, "the delivery after it was enabled")
        assert receiver.told[-1][1] == f"test:{final.id}"


async def test_a_follower_that_lags_behind_gives_a_new_webhook_nothing_old(
    queue: Queue, receiver: Receiver, until: Until
) -> None:
    """Nobody followed when the webhooks were removed, or a follower has written its place back since."""
    await queue.put_webhook("first", receiver.url, events=["killed"])
    async with queue.webhook_queue() as deliveries:
        fence, _ = await Announcer(queue, deliveries)._turn()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        await queue.delete_webhook("first")
        await (await queue.enqueue("mail", delay=60)).kill()
        await queue.put_webhook("second", receiver.url, events=["killed"])
        facts = queue.store.keys["webhook_facts"]
        await queue.store.command(b"HSET", facts, b"cursor", b"0-1")
        assert fence == 1
        await queue.store.command(b"HDEL", facts, b"follower")
    job = await queue.enqueue("mail", delay=60)
    await job.kill()
    async with delivering(queue):
        await until(lambda: receiver.got, "the delivery")
        assert receiver.told == [("job.killed", f"test:{job.id}")]


async def test_types_of_jobs_that_are_not_kept(queue: Queue, receiver: Receiver, until: Until) -> None:
    """Their rows are gone or hidden when the event is read."""
    await queue.put_webhook("crm", receiver.url, events=["completed", "removed"], types=["mail"])

    @queue.task(retention=0)
    async def mail() -> None: ...

    @queue.task(retention=0)
    async def other() -> None: ...

    async with delivering(queue) as deliveries, Worker(queue) as worker:
        worker.start()
        done = await mail.enqueue()
        await other.enqueue()
        removed = [await queue.enqueue(kind, delay=60) for kind in ("other", "mail")]
        for job in removed:
            await queue.remove(job.id)
        await until(lambda: len(receiver.got) == 2, "the deliveries")
        expected = [("job.completed", f"test:{done.id}"), ("job.removed", f"test:{removed[1].id}")]
        assert sorted(receiver.told) == sorted(expected)
        assert {json.loads(body)["data"]["type"] for _, body in receiver.got} == {"mail"}
        # Nobody knows the type of this one. To tell too much is better than to miss it.
        fields = (b"XADD", queue.store.keys["events"], b"*", b"completed", b"gone")
        await queue.store.command(*fields)
        await until(lambda: len(receiver.got) == 3, "the delivery without a type")
        assert json.loads(receiver.got[-1][1])["data"] == {"id": "test:gone", "queue": "test", "type": None}
        assert len((await deliveries.page()).jobs) == 3


async def test_no_error_ends_the_webhooks_of_a_queue(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    remember, failed = Announcer._remember, 0  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def fails(announcer: Announcer) -> None:
        nonlocal failed
        failed += 1
        if failed < 3:
            raise ValueError("nobody thought of this")
        await remember(announcer)

    monkeypatch.setattr(Announcer, "_remember", fails)
    async with delivering(queue):
        job = await queue.enqueue("mail", delay=60)
        await job.kill()
        await until(lambda: receiver.got, "the delivery")
    assert caplog.text.count("could not be passed on to webhooks; tried again in") == 2
    assert "ValueError: nobody thought of this" in caplog.text


async def test_an_error_of_the_worker_reaches_the_caller(
    queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])

    async def fails(_: Worker) -> None:
        raise RuntimeError("the worker failed")

    monkeypatch.setattr(Worker, "finished", fails)
    with pytest.raises(RuntimeError, match="the worker failed"):
        await asyncio.wait_for(deliver_webhooks(queue), 20)


async def test_410_disables_and_a_put_enables_again(
    queue: Queue, receiver: Receiver, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    receiver.status = 410
    async with delivering(queue):
        await (await queue.enqueue("mail")).kill()

        async def disabled() -> bool:
            return not (await queue.get_webhook("crm")).enabled

        await until(disabled, "the webhook to be disabled")
        assert (await queue.get_webhook("crm")).disabled == "the address answered 410: it is gone"
        assert "Webhook crm of queue test was disabled" in caplog.text
        await asyncio.sleep(0.1)  # until the follower has looked
        await (await queue.enqueue("mail")).kill()
        await asyncio.sleep(0.05)
        receiver.status = 200
        await queue.put_webhook("crm", receiver.url, events=["killed"])
        await asyncio.sleep(0.1)
        job = await queue.enqueue("mail")
        await job.kill()
        await until(lambda: len(receiver.got) == 2, "the delivery")
        assert receiver.told[-1] == ("job.killed", f"test:{job.id}")


async def test_a_webhook_that_is_made_again_gets_no_deliveries_of_the_one_before_it(
    queue: Queue, receiver: Receiver, until: Until
) -> None:
    """They are tried again for hours, and the new one may have the address of somebody else."""
    asked, release = asyncio.Event(), asyncio.Event()

    async def broken() -> web.Response:
        asked.set()
        await release.wait()
        return web.Response(status=500)

    receiver.answers = [broken]
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    async with delivering(queue) as deliveries:
        await (await queue.enqueue("mail")).kill()
        await asked.wait()
        await queue.delete_webhook("crm")
        await queue.put_webhook("crm", receiver.url, events=["killed"])
        release.set()

        async def ended() -> bool:
            found = await deliveries.stats()
            return found.failed + found.completed == 1

        await until(ended, "the old delivery to end")
        assert len(receiver.got) == 1
        await (await queue.enqueue("mail")).kill()
        await until(lambda: len(receiver.got) == 2, "the delivery of the new one")


async def test_the_answer_of_an_earlier_address_disables_nothing(
    queue: Queue, receiver: Receiver, until: Until
) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def gone() -> web.Response:
        asked.set()
        await release.wait()
        return web.Response(status=410)

    receiver.answers = [gone]
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    async with delivering(queue) as deliveries:
        await (await queue.enqueue("mail")).kill()
        await asked.wait()
        await queue.put_webhook("crm", f"{receiver.url}?moved", events=["killed"])
        release.set()

        async def ended() -> bool:
            return (await deliveries.stats()).failed == 1

        await until(ended, "the delivery to end")
        assert (await queue.get_webhook("crm")).enabled
        await (await queue.enqueue("mail")).kill()
        await until(lambda: len(receiver.got) == 2, "the next delivery")


async def test_an_address_that_fails_for_days_is_disabled(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSED_AFTER", 3)
    monkeypatch.setattr(webhooks, "DISABLED_AFTER", timedelta(0))
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    receiver.status = 500
    async with delivering(queue):
        await (await queue.enqueue("mail")).kill()

        async def disabled() -> bool:
            return (await queue.get_webhook("crm")).disabled is not None

        await until(disabled, "the webhook to be disabled")
    found = await queue.get_webhook("crm")
    assert (found.failures, found.failing_since is not None) == (3, True)
    assert "all 3 attempts of 0 days failed; the last one: the address answered 500" in (found.disabled or "")


@pytest.mark.parametrize("mended", ["test", "set"])
async def test_an_address_that_is_away_gets_few_requests_and_later_all_deliveries(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch, mended: str
) -> None:
    """An outage of minutes in a busy queue must neither disable a webhook nor use up the attempts of its deliveries."""
    monkeypatch.setattr(webhooks, "PAUSED_AFTER", 2)
    monkeypatch.setattr(webhooks, "PAUSE", 3600.0)
    monkeypatch.setattr(webhooks, "PAUSE_MAX", 3600.0)
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    receiver.status = 500
    jobs = [await queue.enqueue("mail") for _ in range(20)]
    async with delivering(queue) as deliveries:
        for job in jobs:
            await job.kill()

        async def paused() -> bool:
            told = (await queue.get_webhook("crm")).waiting == len(jobs)
            return told and not (await deliveries.stats()).active

        await until(paused, "all deliveries to wait")
        assert len(receiver.got) < webhooks.PAUSED_AFTER + webhook_verbs.AT_ONCE
        assert (await queue.get_webhook("crm")).enabled
        receiver.status = 200
        receiver.got.clear()
        if mended == "test":
            await queue.test_webhook("crm")
        else:
            await queue.put_webhook("crm", receiver.url, events=["killed"])
        await until(lambda: len(set(receiver.told)) == len(jobs) + (mended == "test"), "all deliveries")
        found = await queue.get_webhook("crm")
        assert (found.failures, found.failing_since) == (0, None)


def _in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(("status", "when"), [(429, str), (503, str), (503, _in_an_hour)])
async def test_an_address_that_asks_for_a_pause_gets_it(
    queue: Queue, receiver: Receiver, until: Until, status: int, when: Callable[..., str]
) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    header = when() or "3600"
    receiver.answers = [lambda: web.Response(status=status, headers={"Retry-After": header})]
    async with delivering(queue):
        await (await queue.enqueue("mail")).kill()
        await until(lambda: receiver.got, "the first delivery")

        async def failed() -> bool:
            return (await queue.get_webhook("crm")).failures == 1

        await until(failed, "its failure")
        await (await queue.enqueue("mail")).kill()

        async def waits() -> bool:
            return (await queue.get_webhook("crm")).waiting == 1

        await until(waits, "the second one to wait")
    assert len(receiver.got) == 1


async def test_an_address_that_asks_for_a_second_again_and_again_leaves_deliveries_their_attempts(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maintenance of a minute with "Retry-After: 1" used up all attempts of three days in ten seconds."""
    monkeypatch.setattr(webhooks, "BACKOFF", [3600])
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    receiver.answers = [lambda: web.Response(status=503, headers={"Retry-After": "1"})]
    async with delivering(queue) as deliveries:
        await (await queue.enqueue("mail")).kill()
        await until(lambda: _size(deliveries, "delayed", 1), "the second attempt to wait")
        [row] = (await deliveries.page(State.DELAYED)).jobs
        assert row.run_at is not None
        assert row.run_at - deliveries.store.now_ms() > 2_000_000
    assert len(receiver.got) == 1


async def test_a_webhook_that_is_made_again_does_not_wait_for_the_pause_of_the_one_before_it(
    queue: Queue, receiver: Receiver, until: Until
) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    receiver.answers = [lambda: web.Response(status=503, headers={"Retry-After": "3600"})]
    async with delivering(queue) as deliveries:
        await (await queue.enqueue("mail")).kill()
        await until(lambda: _closed(deliveries), "the webhook to be paused")
        await queue.delete_webhook("crm")
        await queue.put_webhook("crm", receiver.url, events=["killed"])
        job = await queue.enqueue("mail")
        await job.kill()
        await until(lambda: receiver.told[1:] == [("job.killed", f"{queue.name}:{job.id}")], "the delivery")


async def test_a_test_ends_a_pause_although_no_failure_is_noted(queue: Queue, receiver: Receiver, until: Until) -> None:
    """A failure and a success at the same moment: the failure may close the webhook after it was forgotten."""
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    async with delivering(queue) as deliveries:
        await (await queue.enqueue("mail")).kill()
        await until(lambda: receiver.got, "a delivery")
        await deliveries.close_limit("webhook:crm", 3600)
        await queue.test_webhook("crm")

        async def opened() -> bool:
            return not await _closed(deliveries)

        await until(opened, "the webhook to go on")


async def test_a_delivery_waits_for_the_one_before_it_however_long_that_takes(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts take three days. A later delivery for the same job looks each minute, and gave up after a thousand
    looks."""
    monkeypatch.setattr(webhooks, "AGAIN", 0.0)
    monkeypatch.setattr(webhooks, "BACKOFF", [3600])
    await queue.put_webhook("crm", receiver.url, events=["killed", "removed"])
    receiver.answers = [lambda: web.Response(status=500)]
    async with delivering(queue) as deliveries:
        job = await queue.enqueue("mail")
        await job.kill()
        await until(lambda: _size(deliveries, "delayed", 1), "the second attempt to wait")
        await queue.remove(job.id)

        async def waited() -> bool:
            return (await deliveries.stats()).snoozed_total > 1010

        await until(waited, "the second delivery to have looked more than a thousand times")
        assert (await deliveries.stats()).failed == 0


async def test_deliveries_are_signed_with_the_time_of_the_server(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a worker of the queue does not read the clock again. After a machine was suspended, receivers
    refused all that it signed."""
    monkeypatch.setattr(queue.store, "now_ms", lambda: 0)
    await queue.put_webhook("crm", receiver.url)
    async with delivering(queue):
        await queue.test_webhook("crm")
        await until(lambda: receiver.got, "the delivery")
    assert abs(int(receiver.got[0][0]["webhook-timestamp"]) - time.time()) < 60


async def _closed(deliveries: Queue) -> bool:
    keys = await deliveries.limit_keys("webhook") if await deliveries.limits() else []
    return any(key.closed_until for key in keys)


async def _size(deliveries: Queue, state: str, size: int) -> bool:
    return getattr(await deliveries.stats(), state) == size


async def test_a_redirect_is_not_followed(queue: Queue, receiver: Receiver, until: Until) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    target = receiver.url
    receiver.answers = [lambda: web.Response(status=307, headers={"Location": target})]
    async with delivering(queue) as deliveries:
        job = await queue.test_webhook("crm")
        await until(lambda: _state(deliveries, job.id, "failed"), "the delivery to fail")
        row = await deliveries.get(job.id)
    assert len(receiver.got) == 1
    assert row.errors[-1].message == "the address answered 307, and redirects are not followed"


async def _state(queue: Queue, job: str, state: str) -> bool:
    return (await queue.get(job)).state == state


HOSTS = [
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
    "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.1", "127.0.0.1.", "%31%32%37.0.0.1",
    "LOCALHOST", "localhost.",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
async def test_private_addresses_are_refused_when_connecting(
    queue: Queue, receiver: Receiver, until: Until, host: str
) -> None:
    await queue.put_webhook("crm", receiver.url.replace("127.0.0.1", host))
    async with delivering(queue, allow=None) as deliveries:
        job = await queue.test_webhook("crm")
        await until(lambda: _state(deliveries, job.id, "failed"), "the delivery to fail")
        row = await deliveries.get(job.id)
    assert receiver.got == []
    # Some ways to write an address are none for aiohttp, or have no meaning to the resolver.
    refusals = ("is not public; JOBQ_WEBHOOK_ALLOW can allow its network", "is not a canonical IPv4", "DNSError", "url")
    assert any(said in row.errors[-1].message for said in refusals), row.errors[-1].message


REFUSED = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255",
    "224.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
    "192.0.2.1", "192.0.0.8", "192.88.99.1", "198.18.0.1", "240.0.0.1", "fec0::1", "64:ff9b:1::808:808",
    "::ffff:0:808:808", "::8.8.8.8", "5f00::1", "2001:db8::1", "2001::1", "2001:20::1", "2002:808:808::1", "3fff::1",
    "100::1", "4000::1", "64:ff9b::7f00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(AddressRefused):
        Guard(None).check(address)
    Guard(f"{address.partition('%')[0]}").check(address)


def test_addresses_that_are_public() -> None:
    for address in ("8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2001:4860:4860::8888"):
        Guard(None).check(address)
    Guard("10.0.0.0/8, ::1").check("::ffff:10.1.2.3")
    with pytest.raises(SettingsError, match="give networks such as"):
        Guard("10.0.0.1/8")


@asynccontextmanager
async def hanging() -> AsyncIterator[tuple[str, list[str]]]:
    """A service that never answers: its URL, and the ids of the deliveries that wait for it now."""
    waiting: list[str] = []

    async def hang(request: web.Request) -> web.StreamResponse:
        waiting.append(request.headers["webhook-id"])
        try:
            await asyncio.Event().wait()
        finally:
            waiting.remove(request.headers["webhook-id"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/{name}", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", waiting
    finally:
        await runner.cleanup()


async def test_webhooks_that_never_answer_delay_no_other(queue: Queue, receiver: Receiver, until: Until) -> None:
    """They take all of their own places, and keep them to the end of the test. The others are told meanwhile."""
    count = 30
    async with hanging() as (url, waiting):
        for n in range(count):
            await queue.put_webhook(f"slow{n}", f"{url}/{n}", events=["killed"])
        await queue.put_webhook("fast", receiver.url, events=["killed"])
        async with delivering(queue):
            for expected in (20, 25):
                for _ in range(expected - len(receiver.got)):
                    await (await queue.enqueue("mail", delay=60)).kill()
                await until(lambda expected=expected: len(receiver.got) == expected, "the fast one to be told")
                await until(lambda: len(waiting) == count * webhooks.AT_ONCE, "the slow ones to take their places")
            assert {id_.partition("~")[0] for id_ in waiting} == {f"slow{n}" for n in range(count)}


async def test_names_that_do_not_resolve_delay_no_other(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their name servers do not answer. Each name takes one thread, and the service has all of its own."""
    asked: list[str] = []
    ended = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, *words: Any, **more: Any) -> Any:
        if host.endswith(".example"):
            asked.append(host)
            ended.wait(60)
            raise socket.gaierror("it never answers")
        return look_up(host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        for n in range(40):
            await queue.put_webhook(f"slow{n}", f"http://s{n}.example/hook", events=["killed"])
        await queue.put_webhook("fast", receiver.url.replace("127.0.0.1", "localhost"), events=["killed"])
        async with delivering(queue, allow="127.0.0.0/8,::1/128"):
            for n in range(1, 6):
                await (await queue.enqueue("mail", delay=60)).kill()
                await until(lambda n=n: len(receiver.got) == n, "the fast one to be told")
            await until(lambda: len(asked) == 40, "all names to be asked for")
            assert len(set(asked)) == 40, "a name is looked up once at a time"
            assert await asyncio.to_thread(lambda: "a thread of the service") == "a thread of the service"
    finally:
        ended.set()


async def test_a_slow_or_endless_answer_is_given_up(
    queue: Queue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.2)
    async with hanging() as (url, _):
        await queue.put_webhook("slow", f"{url}/hook", events=["killed"])
        async with delivering(queue) as deliveries:
            await (await queue.enqueue("mail", delay=60)).kill()
            await until(lambda: _timed_out(deliveries), "a slow delivery to be given up")


async def _timed_out(deliveries: Queue) -> bool:
    page = await deliveries.page(limit=100)
    return any("TimeoutError" in error.message for row in page.jobs for error in row.errors)


async def test_secrets_are_shown_once(
    queue: Queue, receiver: Receiver, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = (await queue.put_webhook("crm", receiver.url)).secret or ""
    found = await queue.get_webhook("crm")
    assert (found.secret, secret[:6]) == (None, "whsec_")
    async with delivering(queue) as deliveries:
        job = await queue.test_webhook("crm")
        await until(lambda: receiver.got, "the delivery")
        row = await deliveries.get(job.id)
    for text in (repr(found), repr(await queue.webhooks()), caplog.text, repr(row), repr(row.payload)):
        assert secret[6:] not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"name": "a b"}, "webhook name"),
        ({"name": "a" * 33}, "webhook name"),
        ({"url": "ftp://x"}, "give https://host/path"),
        ({"url": "https://"}, "give https://host/path"),
        ({"url": "https://x:99999/"}, "give https://host/path"),
        ({"url": "https://u:p@x/"}, "has a user or password"),
        ({"url": "https://x/\n"}, "give https://host/path"),
        ({"events": ["done"]}, "give a list of started"),
        ({"events": ["missed"]}, "give a list of started"),
        ({"events": []}, "give a list of started"),
        ({"events": "failed"}, "give a list of started"),
        ({"types": "mail"}, "give a list of at most 100 types"),
        ({"secret": "whsec_short"}, "must be 'whsec_'"),
        ({"secret": "x" * 40}, "must be 'whsec_'"),
        ({"secret": "whsec_!!!!"}, "must be 'whsec_'"),
    ],
)
async def test_wrong_webhooks_are_refused(queue: Queue, words: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"name": "crm", "url": "https://example.com/hook"} | words
    with pytest.raises(InvalidJob, match=said):
        await queue.put_webhook(given.pop("name"), given.pop("url"), **given)
    assert await queue.webhooks() == []


async def test_webhooks_that_do_not_exist(queue: Queue) -> None:
    for verb in (queue.get_webhook, queue.delete_webhook, queue.rotate_webhook, queue.test_webhook):
        with pytest.raises(WebhookNotFound, match="there is no webhook 'crm'"):
            await verb("crm")
    await queue.put_webhook("crm", "https://example.com/hook")
    await queue.delete_webhook("crm")
    assert await queue.webhooks() == []


async def test_a_damaged_row_hides_no_other(queue: Queue, connection: Connection) -> None:
    await queue.put_webhook("crm", "https://example.com/hook")
    await queue.store.command(b"HSET", queue.store.keys["webhooks"], b"bad", b"{")
    assert [one.name for one in await queue.webhooks()] == ["crm"]


async def test_a_job_with_large_metadata_stops_no_delivery(queue: Queue, receiver: Receiver, until: Until) -> None:
    async with queue, delivering(queue):
        await queue.put_webhook("crm", receiver.url)
        size = queue.max_payload - 100
        jobs = [await queue.enqueue("t", metadata={"x": "y" * size}), await queue.enqueue("t")]
        for job in jobs:
            await queue.kill(job.id)
        await until(lambda: len(receiver.got) == 2, "both deliveries")
        assert sorted(told for _, told in receiver.told) == sorted(f"test:{job.id}" for job in jobs)


async def test_all_of_many_large_jobs_are_killed_and_told(queue: Queue, receiver: Receiver, until: Until) -> None:
    """The rows of so many jobs do not fit into one reply."""
    await queue.put_webhook("crm", receiver.url)
    jobs = [await queue.enqueue("t", {"x": "y" * 60_000}) for _ in range(40)]
    assert await queue.kill_all(State.WAITING) == 40
    async with delivering(queue):
        await until(lambda: len(receiver.got) >= 40, "all deliveries")
    assert sorted(told for _, told in receiver.told) == sorted(f"test:{job.id}" for job in jobs)


async def test_a_webhook_that_is_slower_than_its_events_is_disabled_and_says_why(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its deliveries succeeds, so failures never disable it."""
    monkeypatch.setattr(webhook_verbs, "BACKLOG", 6)
    answer = asyncio.Event()

    async def slow() -> web.Response:
        await answer.wait()
        return web.Response()

    receiver.answers = [slow] * 100
    await queue.put_webhook("slow", receiver.url, events=["killed"])
    await queue.put_webhook("other", receiver.url, events=["removed"])
    async with delivering(queue) as deliveries:

        async def waiting() -> int:
            return (await queue.get_webhook("slow")).waiting

        jobs = [await queue.enqueue("mail") for _ in range(40)]
        for number, job in enumerate(jobs):
            await job.kill()
            if number == 9:
                await until(lambda: len(receiver.got) == webhook_verbs.AT_ONCE, "all places to be taken")
                await until(waiting, "the others to wait")

        async def disabled() -> bool:
            return (await queue.get_webhook("slow")).disabled is not None

        await until(disabled, "the webhook to be disabled")
        found = await queue.get_webhook("slow")
        assert "deliveries wait, because it fails or is slower than its events come: choose fewer" in (
            found.disabled or ""
        )
        assert (await queue.get_webhook("other")).enabled
        assert "Webhook slow of queue test was disabled" in caplog.text
        answer.set()

        async def unfinished() -> bool:
            stats = await deliveries.stats()
            return stats.held + stats.waiting + stats.active + stats.delayed == 0

        await until(unfinished, "the deliveries to end")
        assert (await deliveries.stats()).failed > 0, "they can be retried"
        assert await waiting() == 0


async def test_a_change_between_the_look_at_a_webhook_and_its_end_wins(
    queue: Queue, receiver: Receiver, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address answered 410. Meanwhile an operator has given the webhook another one."""
    receiver.status = 410
    await queue.put_webhook("crm", receiver.url)
    disable = webhook_verbs.disable_webhook
    done = asyncio.Event()

    async def changed_first(of: Any, name: str, row: bytes, reason: str) -> None:
        await queue.put_webhook("crm", "https://example.com/new")
        await disable(of, name, row, reason)
        done.set()

    monkeypatch.setattr(webhooks, "disable_webhook", changed_first)
    async with delivering(queue):
        await (await queue.enqueue("mail")).kill()
        await asyncio.wait_for(done.wait(), 10)
    found = await queue.get_webhook("crm")
    assert (found.enabled, found.disabled, found.url) == (True, None, "https://example.com/new")


async def test_a_follower_that_is_stopped_while_redis_is_away_ends(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cancelled while it left the stream of events because of an outage. It went on, and its server never
    ended."""
    ending, may_end = asyncio.Event(), asyncio.Event()

    async def batches(**_: Any) -> AsyncIterator[list[Any]]:
        try:
            await asyncio.Event().wait()
            yield []
        finally:
            ending.set()
            await may_end.wait()

    await queue.put_webhook("crm", "https://example.com/")
    do, turns = queue.store.do, 0

    async def away(call: Any, **words: Any) -> Any:
        nonlocal turns
        turns += call.script == "follow_events"
        if turns > 1:
            raise StoreUnavailable("Redis is away")
        return await do(call, **words)

    monkeypatch.setattr(queue, "event_batches", batches)
    monkeypatch.setattr(announce, "LOOK", 0.005)
    monkeypatch.setattr(queue.store, "do", away)
    async with queue.webhook_queue() as deliveries:
        following = asyncio.create_task(Announcer(queue, deliveries).run())
        await ending.wait()
        following.cancel()
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.wait([following], timeout=10)
        assert following.cancelled()


async def test_of_two_changes_at_the_same_time_neither_is_lost(queue: Queue) -> None:
    made = await queue.put_webhook("crm", "https://example.com/old")
    changed, rotated, again = await asyncio.gather(
        queue.put_webhook("crm", "https://example.com/new"), queue.rotate_webhook("crm"), queue.rotate_webhook("crm")
    )
    assert changed.secret is None
    found = read_webhook((await queue.store.webhook("crm")).row or b"")
    assert found is not None
    assert found.url == "https://example.com/new"
    newest, earlier = (one.secret for one in found.secrets)
    assert {newest, earlier} == {rotated.secret, again.secret}, "one rotation came behind the other"
    assert made.secret not in (newest, earlier)


async def test_a_rotation_whose_reply_was_lost_keeps_the_earlier_secret(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changed the webhook before the repetition, which then counted the new secret as the earlier one."""
    made = await queue.put_webhook("crm", "https://example.com/old")
    do = queue.store.do

    async def changed_behind(call: Any, **words: Any) -> Any:
        answer = await do(call, **words)
        if call.script != "webhook_write":
            return answer
        monkeypatch.setattr(queue.store, "do", do)
        await queue.put_webhook("crm", "https://example.com/new")
        return await do(call, **words)

    monkeypatch.setattr(queue.store, "do", changed_behind)
    rotated = await queue.rotate_webhook("crm")
    found = read_webhook((await queue.store.webhook("crm")).row or b"")
    assert found is not None
    assert [one.secret for one in found.secrets] == [rotated.secret, made.secret]
    assert found.url == "https://example.com/new"


async def test_a_row_without_secrets_counts_as_damaged(queue: Queue) -> None:
    await queue.put_webhook("crm", "https://example.com/")
    row = json.loads((await queue.store.webhook("crm")).row or b"") | {"secrets": []}
    await queue.store.command(b"HSET", queue.store.keys["webhooks"], "crm", json.dumps(row))
    with pytest.raises(WebhookNotFound):
        await queue.rotate_webhook("crm")
    assert (await queue.put_webhook("crm", "https://example.com/")).secret is not None


async def test_a_webhook_that_is_removed_does_not_come_back_by_a_rotation(queue: Queue) -> None:
    await queue.put_webhook("crm", "https://example.com/")
    rotated, removed = await asyncio.gather(
        queue.rotate_webhook("crm"), queue.delete_webhook("crm"), return_exceptions=True
    )
    assert removed is None
    assert isinstance(rotated, WebhookNotFound | Webhook), rotated
    assert await queue.webhooks() == []


async def test_the_last_deliveries_of_a_webhook_are_listed(queue: Queue, receiver: Receiver, until: Until) -> None:
    await queue.put_webhook("crm", receiver.url, events=["killed"])
    await queue.put_webhook("other", receiver.url, events=["killed"])
    receiver.answers = [lambda: web.Response(status=500, text="not now")] * 2
    async with delivering(queue):
        job = await queue.enqueue("mail")
        await job.kill()

        async def delivered() -> bool:
            lists = [await queue.webhook_deliveries(name) for name in ("crm", "other")]
            return all(one and one[0].state == State.COMPLETED for one in lists)

        await until(delivered, "the deliveries")
        test = await queue.test_webhook("crm")

        async def tested() -> bool:
            return len(await queue.webhook_deliveries("crm")) == 2

        await until(tested, "the test")
    first, second = await queue.webhook_deliveries("crm")
    assert (first.id, first.event, first.job) == (f"test.webhooks:{test.id}", "test", None)
    assert (second.event, second.job, second.status) == ("killed", job.id, 200)
    assert first.at >= second.at
    assert await queue.webhook_deliveries("crm", limit=1) == [first]
    [other] = await queue.webhook_deliveries("other")
    assert sum(one.attempts_made for one in (second, other)) == 4, "both first attempts failed"
    assert "answered 500: not now" in (second.error or other.error or "")
    for limit in (0, 201):
        with pytest.raises(InvalidQuery, match="it takes 1 to 200"):
            await queue.webhook_deliveries("crm", limit=limit)
    with pytest.raises(WebhookNotFound):
        await queue.webhook_deliveries("nobody")
