"""The dashboard and /docs in a real Chromium: clicks, focus and text."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page, async_playwright, expect
from rest import serving, working
from test_asgi import mounted
from test_asgi import serving as serving_asgi

from jobq import Breaker, Concurrency, Connection, Context, Queue, create_app, inject
from jobq.engine.model.ids import IdMaker
from jobq.http import asgi
from jobq.http.auth import Scope, new_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rest import Until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
AXE = Path(os.environ.get("JOBQ_TEST_AXE", "node_modules/axe-core/axe.min.js"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install -y chromium"),
]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@asynccontextmanager
async def browsing(*queues: Queue, **options: Any) -> AsyncIterator[Page]:
    """A browser page with the application of these queues."""
    async with serving(create_app(*queues, **options)) as served, visiting(f"http://127.0.0.1:{served.port}") as page:
        yield page


@asynccontextmanager
async def visiting(base: str) -> AsyncIterator[Page]:
    """A page of a browser. An error on the page fails the test."""
    errors: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(base_url=base, locale="en", timezone_id="UTC")
        context.set_default_timeout(15_000)
        page = await context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page
        finally:
            await browser.close()
    assert errors == []


async def test_enter_confirms_the_priority_dialog_and_escape_cancels_it(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        job = await queue.enqueue("send")
        await page.goto(f"/dashboard#/job/main:{job.id}")
        await page.get_by_role("button", name="Priority").click()
        await page.get_by_label("Priority, lower runs first").fill("-7")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").filter(has_text="Its priority is -7.")).to_be_visible()
        assert (await queue.get(job.id)).priority == -7
        await page.get_by_role("button", name="Kill").click()
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Kill").click()
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#dialog")).to_be_hidden()
        assert (await queue.get(job.id)).state == "waiting"
        await page.get_by_role("button", name="Kill").click()
        await page.keyboard.press("Enter")  # An action that cannot be undone needs a confirmation.
        await expect(page.locator("#dialog")).to_be_hidden()
        assert (await queue.get(job.id)).state == "waiting"
        await page.get_by_role("button", name="Kill").click()
        await page.locator("#yes").click()
        await expect(page.locator(".state.failed")).to_be_visible()


async def test_a_refresh_keeps_the_focus_and_moves_no_row_under_the_mouse(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue, Queue("other", connection)) as page:
        jobs = [await queue.enqueue("send", priority=10) for _ in range(3)]
        await page.goto("/dashboard")
        rows = page.locator("#rows tbody tr")
        await expect(rows).to_have_count(3)
        first = rows.nth(0).get_by_role("link")
        await first.hover()
        urgent = await queue.enqueue("send", priority=0)
        await queue.remove(jobs[1].id)
        # The event of the change has arrived and the list was requested: the notice is shown, and no row has moved.
        await expect(page.locator("#held")).to_contain_text("The list has changed.")
        assert await first.inner_text() == jobs[0].id
        await expect(rows).to_have_count(3)
        await expect(rows.nth(1)).to_have_class("left")
        await page.mouse.move(0, 0)
        await expect(rows.nth(0).get_by_role("link")).to_have_text(urgent.id)
        await expect(page.locator("#held")).to_be_empty()
        # The focus stays in the table and in the list of queues while numbers change.
        for focused in (
            rows.nth(1).get_by_role("link"),
            page.locator("#queues a").nth(1),
            page.locator("#tiles a").nth(2),
        ):
            await focused.focus()
            marked = await page.evaluate_handle("document.activeElement")
            before = await page.locator(".tile.waiting b").inner_text()
            await queue.enqueue("send", priority=20)
            await expect(page.locator(".tile.waiting b")).not_to_have_text(before)
            await expect(page.locator("#queues a").nth(0)).to_contain_text(str(int(before) + 1))
            assert await page.evaluate("node => node === document.activeElement && node.isConnected", marked)


async def test_a_type_that_only_workers_of_another_queue_serve_is_reported(connection: Connection):
    main, other = Queue("main", connection), Queue("other", connection)

    @main.task
    async def report() -> None: ...

    @other.task
    async def send() -> None: ...

    producer = Queue("main", connection)
    async with producer, working(main, other, grace=0.1), browsing(producer) as page:
        job = await producer.enqueue("send", delay=3600)
        await page.goto(f"/dashboard#/job/main:{job.id}")
        await expect(page.locator("#why")).to_contain_text('No live worker knows the type "send"; they know: report.')


async def test_published_types_are_shown_and_those_about_which_two_releases_disagree(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        store = queue.store
        await store.do(store.publish("web-1", ["send", '{"options":{"attempts":5}}', "report", "{}"], started=True))
        await store.do(store.publish("web-2", ["send", '{"options":{"attempts":9}}'], started=True))
        await page.goto("/dashboard#/q/main/waiting")
        types = page.locator("#types")
        await expect(types).to_contain_text("Published by workers and servers: report, send")
        await expect(types).to_contain_text("web-2 and web-1 publish different options or schemas of send.")


async def test_limits_and_breakers_are_shown_and_changed(connection: Connection):
    queue = Queue("main", connection)

    @queue.task(limits=[Concurrency(5, by="tenant", name="tenant")], breaker=Breaker())
    async def send(tenant: str) -> None: ...

    producer = Queue("main", connection)
    async with producer, working(queue, grace=0.1), browsing(producer) as page:
        await producer.close_limit("tenant:acme", 3600)
        await send.enqueue(tenant="acme")
        await page.goto("/dashboard")
        panel = page.locator("#limits")
        await expect(panel).to_contain_text("5 at once")
        await panel.get_by_role("button", name="tenant").click()
        await expect(panel).to_contain_text("1 held, 0 active, closed until in 60 min")
        await panel.get_by_role("listitem").get_by_role("button", name="Open").click()
        await page.locator("#yes").click()
        await expect(panel).not_to_contain_text("1 held")
        await panel.get_by_role("button", name="Set").click()
        await page.get_by_label("Jobs at once").fill("7")
        await page.keyboard.press("Enter")
        await expect(panel).to_contain_text("7 at once")
        await panel.get_by_role("button", name="Reset").click()
        await page.locator("#yes").click()
        await expect(panel).to_contain_text("5 at once")
        await panel.get_by_role("button", name="Trip").click()
        await page.locator("#yes").click()
        await expect(panel).to_contain_text("open, until")
        await panel.get_by_role("button", name="Close").click()
        await page.locator("#yes").click()
        # The panel's text says "closed keys" from the start; only the cell shows the breaker.
        await expect(panel.get_by_role("cell", name="closed", exact=True)).to_be_visible()
        assert [row.state for row in await producer.breakers()] == ["closed"]


async def test_groups_are_shown_and_changed(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        # An id says when its job was enqueued. Jobs of one millisecond have waited equally long.
        await queue.enqueue("work", {"n": 0}, id=IdMaker().new(1_700_000_000_000), group="small")
        for n in (1, 2):
            await queue.enqueue("work", {"n": n}, group="large")
        await page.goto("/dashboard")
        panel = page.locator("#groups")
        first = panel.locator("tbody tr").first
        await expect(first).to_contain_text("large")
        await panel.get_by_role("button", name="longest wait").click()
        await expect(first).to_contain_text("small")
        await panel.get_by_role("button", name="Weight of large").click()
        await page.get_by_label("Weight", exact=True).fill("2.5")
        await page.keyboard.press("Enter")
        await expect(panel.get_by_role("cell", name="2.5", exact=True)).to_be_visible()
        await panel.get_by_role("button", name="Pause large").click()
        await page.locator("#yes").click()
        await expect(panel.get_by_role("button", name="Resume large")).to_be_visible()
        await expect(panel.get_by_role("cell", name="paused", exact=True)).to_be_visible()
        await panel.get_by_role("button", name="Kill all jobs of large").click()
        await page.locator("#yes").click()
        await expect(panel.get_by_role("button", name="Kill all jobs of large")).to_have_count(0)
        [row] = [row for row in await queue.groups() if row.group == "large"]
        assert (row.held, row.weight, row.paused) == (0, 2.5, True)
        assert (await queue.stats()).failed == 2


BIDI = "user\u202etxt.exe\u2066 \u200f\x1b[31m\x00\u2028end"
SHOWN = "user\\u202etxt.exe\\u2066 \\u200f\\u001b[31m\\u0000\\u2028end"
UNSEEN = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
]


async def test_no_text_of_a_job_reverses_or_hides_other_text(connection: Connection):
    queue = Queue("main", connection)

    @queue.task(attempts=1)
    async def evil(ctx: Context = inject, **_: Any) -> None:
        ctx.log(BIDI)
        raise ValueError(BIDI)

    async with queue, browsing(queue) as page:
        job = await queue.enqueue("evil", {BIDI: BIDI}, metadata={BIDI: BIDI})
        waiting = await queue.enqueue("evil", {"all": "".join(map(chr, UNSEEN))}, key="k\u202e", delay=3600)
        async with working(queue):
            with pytest.raises(Exception, match="ValueError"):
                await job.result(timeout=20)
        pages = [
            f"/dashboard#/job/main:{job.id}", "/dashboard#/q/main/failed", f"/dashboard#/job/main:{waiting.id}",
            "/dashboard#/q/main/delayed?type=%E2%80%AE", "/dashboard#/job/main:%E2%80%AE",
            "/dashboard#/q/%E2%80%AE/waiting",
        ]  # fmt: skip
        for address in pages:
            await page.goto("about:blank")
            await page.goto(address)
            await expect(page.locator("main h1").first).to_be_visible()
            if address == pages[0]:
                await expect(page.locator("#about")).to_contain_text(SHOWN)
                await expect(page.locator("#why")).to_contain_text(SHOWN)
            if address == pages[1]:
                await expect(page.locator("#rows")).to_contain_text(SHOWN)
            if address == pages[2]:
                await expect(page.locator("#why")).to_contain_text("k\\u202e")
            said = await page.evaluate(
                "document.title + document.body.innerText + [...document.querySelectorAll('*')]"
                ".flatMap((node) => [...node.attributes].map(({ value }) => value)).join()"
            )
            assert not {chr(code) for code in UNSEEN if chr(code) not in "\n\t"} & set(said)


async def test_schedules_are_shown_paused_resumed_and_run(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        await queue.put_schedule("nightly", "send", cron="30 2 * * *", tz="Europe/Berlin")
        await page.goto("/dashboard")
        panel = page.locator("#schedules")
        await expect(panel).to_contain_text("At 02:30 every day")
        await expect(panel).to_contain_text("next in")
        await panel.get_by_role("button", name="Pause nightly").click()
        await page.locator("#yes").click()
        await expect(panel).to_contain_text("paused by")
        await panel.get_by_role("button", name="Run now nightly").click()
        await page.locator("#yes").click()
        await expect(panel).to_contain_text("(run)")
        assert (await queue.stats()).delayed + (await queue.stats()).waiting == 1
        await panel.get_by_role("button", name="Resume nightly").click()
        await page.locator("#yes").click()
        await expect(panel.get_by_role("button", name="Pause nightly")).to_be_visible()
        await expect(panel).to_contain_text("next in")
        assert (await queue.get_schedule("nightly")).paused is None


async def test_webhooks_are_shown_disabled_and_enabled(connection: Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobq.webhooks.LOOK", 0.02)
    monkeypatch.setattr("jobq.engine.queue.announce.LOOK", 0.02)
    queue = Queue("main", connection)  # No private address is allowed, so no delivery succeeds.
    async with queue, browsing(queue) as page:
        await queue.put_webhook("crm", "http://127.0.0.1:9/hook", events=["killed"], types=["send"])
        await (await queue.enqueue("send", delay=60)).kill()
        await page.goto("/dashboard")
        panel = page.locator("#webhooks")
        await expect(panel).to_contain_text("killed of send")
        await expect(panel).to_contain_text("failed, tried again later")
        await panel.get_by_role("button", name="Deliveries crm").click()
        await expect(panel.locator("h3")).to_have_text("Last deliveries of crm")
        await expect(panel.locator("div", has=page.locator("h3"))).to_contain_text("is not public")
        await panel.get_by_role("button", name="Deliveries crm").click()
        await expect(panel.locator("h3")).to_have_count(0)
        await panel.get_by_role("button", name="Disable crm").click()
        await page.locator("#yes").click()
        await expect(panel.get_by_role("button", name="Enable crm")).to_be_visible()
        found = await queue.get_webhook("crm")
        assert (found.enabled, found.events, found.types) == (False, ["killed"], ["send"])
        await panel.get_by_role("button", name="Enable crm").click()
        await page.locator("#yes").click()
        await expect(panel.get_by_role("button", name="Disable crm")).to_be_visible()
        assert (await queue.get_webhook("crm")).enabled
        await panel.get_by_role("button", name="Test crm").click()
        await page.locator("#yes").click()
        await expect(page.get_by_role("status").filter(has_text="It is being delivered.")).to_be_visible()
        # The delivery may have ended meanwhile, because its webhook was disabled. Its first error stays.
        await panel.locator("tbody a").click()
        await expect(page.locator("#about")).to_contain_text("is not public; JOBQ_WEBHOOK_ALLOW can allow its network")


async def test_the_page_of_a_job_follows_its_events(connection: Connection):
    """Without the stream of the queue's numbers the page would ask again after 10 seconds only."""
    queue, go = Queue("main", connection, events="all"), asyncio.Event()

    @queue.task
    async def work(ctx: Context = inject) -> str:
        await go.wait()
        ctx.progress(42)
        await asyncio.Event().wait()
        return "never"

    async with queue, working(queue, grace=0.1), browsing(queue) as page:
        job = await work.enqueue()
        await page.route("**/jobs/stats/events", lambda route: route.abort())
        await page.goto(f"/dashboard#/job/main:{job.id}")
        await expect(page.locator(".state.active")).to_be_visible()
        go.set()
        await expect(page.locator("#about")).to_contain_text("42 %")
        await queue.kill(job.id)
        await expect(page.locator(".state.failed")).to_be_visible()


async def test_login_and_logout(connection: Connection):
    secret, key = new_key("ann", Scope.ADMIN)
    queue = Queue("main", connection)
    async with queue, browsing(queue, api_keys=[key]) as page:
        await page.goto("/dashboard")
        await page.get_by_label("API key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#refused")).to_contain_text("not known")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.locator("#user")).to_contain_text("ann (admin)")
        await expect(page.locator("#live")).to_have_text("live")
        await page.get_by_role("button", name="Pause").click()
        await page.keyboard.press("Enter")
        await expect(page.locator(".state.paused")).to_be_visible()
        assert (await queue.stats()).paused
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_the_pages_are_accessible(connection: Connection):
    queue = Queue("main", connection)

    @queue.task(attempts=1)
    async def fails(ctx: Context = inject) -> None:
        ctx.log("a line")
        raise ValueError("no")

    async with queue, browsing(queue) as page:
        job = await queue.enqueue("fails")
        async with working(queue):
            with pytest.raises(Exception, match="ValueError"):
                await job.result(timeout=20)
            for address in ("/dashboard", "/dashboard#/q/main/failed", f"/dashboard#/job/main:{job.id}", "/docs"):
                await page.goto("about:blank")
                await page.goto(address)
                await expect(page.locator("h1").first).to_be_visible()
                if "failed" in address:
                    await expect(page.locator("#rows tbody tr")).to_have_count(1)
                assert await page.evaluate("[...document.querySelectorAll('th')].every((one) => one.innerText.trim())")
                assert await page.locator("main:visible").count() == 1
                assert await page.locator("h1:visible").count() == 1
                assert await violations(page) == []


SCRIPT = AXE.read_text(encoding="utf-8") if AXE.exists() else ""


async def violations(page: Page) -> list[str]:
    """The findings of axe-core, if it is installed (npm install axe-core)."""
    if not SCRIPT:
        return []
    await page.evaluate(SCRIPT)
    found = await page.evaluate("axe.run()")
    return [
        f"{one['id']}: {json.dumps([node['html'][:120] for node in one['nodes'][:3]])}" for one in found["violations"]
    ]


@pytest.mark.parametrize("kind", ["fastapi", "starlette"])
async def test_under_a_prefix_of_an_asgi_application(connection: Connection, until: Until, kind: str):
    secret, key = new_key("ann", Scope.ADMIN)
    queue = Queue("main", connection)
    app = mounted(kind, asgi(queue, api_keys=[key]))
    async with queue, serving_asgi(app, until, timeout_graceful_shutdown=1) as base, visiting(base) as page:
        await page.goto("/ops/jobq/dashboard")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.locator("#live")).to_have_text("live")
        job = await queue.enqueue("send")
        await page.locator("#rows a").click()
        await page.get_by_role("button", name="Kill").click()
        await page.locator("#yes").click()
        await expect(page.locator(".state.failed")).to_be_visible()
        assert (await queue.get(job.id)).state == "failed"
        cookies = await page.context.cookies()
        assert [cookie.get("path") for cookie in cookies] == ["/ops/jobq"]


async def test_the_reasons_of_the_server_are_shown_for_a_job_and_for_a_queue(connection: Connection):
    queue = Queue("main", connection)

    @queue.task(limits=[Concurrency(5, by="tenant", name="tenant")])
    async def send(tenant: str) -> None: ...

    producer = Queue("main", connection)
    async with producer, working(queue, grace=0.1, lease=3), browsing(producer) as page:
        await producer.close_limit("tenant:acme", 3600)
        job = await send.enqueue(tenant="acme")
        await page.goto(f"/dashboard#/job/main:{job.id}")
        why = page.locator("#why")
        await expect(why).to_contain_text('The key "tenant:acme" is closed and opens in')
        await expect(why).to_contain_text("It starts in about")
        await producer.pause()
        await page.goto("/dashboard#/q/main/held")
        await expect(page.locator("#notes")).to_contain_text("The queue is paused: no worker takes a job")
        # The worker notices the pause when its wait for a job ends, and says so with its next heartbeat.
        await expect(page.locator("#workers")).to_contain_text("last claim: queue paused", timeout=25_000)


async def test_a_job_is_run_as_a_new_one_with_another_payload(connection: Connection):
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        job = await queue.enqueue("send", {"to": "ann@exmaple.com", "number": 12345678901234567890}, priority=3)
        await page.goto(f"/dashboard#/job/main:{job.id}")
        await page.get_by_role("button", name="Run as new job").click()
        text = page.locator("#dialog textarea")
        await expect(text).to_have_value(re.compile("12345678901234567890"))
        await text.fill('{"to": ')
        await page.locator("#yes").click()
        await expect(page.get_by_text("The payload is not JSON.")).to_be_visible()
        assert (await job.row()).reruns == []
        await expect(text).to_have_value('{"to": ')
        await text.fill('{"to": "ann@example.com", "number": 12345678901234567891}')
        await page.locator("#yes").click()
        await expect(page.get_by_role("status").filter(has_text="A new job was enqueued.")).to_be_visible()
        [rerun] = (await job.row()).reruns
        await expect(page).to_have_url(re.compile(f"main.*{rerun}"))
        row = await queue.get(rerun)
        assert bytes(row.payload) == b'{"to": "ann@example.com", "number": 12345678901234567891}'
        assert (row.rerun_of, row.priority, row.state) == (job.id, 3, "waiting")
        # Its page leads back to the earlier job.
        await page.get_by_role("link", name=job.id).click()
        await expect(page.get_by_role("link", name=rerun)).to_be_visible()


async def test_partitions_are_shown_and_set(connection: Connection):
    queue = Queue("main", connection, partitions=3)
    async with queue, browsing(queue) as page:
        await queue.enqueue_many([queue.new("send") for _ in range(3)])
        await page.goto("/dashboard#/q/main/waiting")
        panel = page.get_by_role("region", name="Partitions")
        await expect(panel.get_by_role("heading", name="3 partitions")).to_be_visible()
        await panel.get_by_role("button", name="Set partitions").click()
        await page.get_by_role("spinbutton", name="Partitions").fill("5")
        await page.keyboard.press("Enter")
        await expect(panel.get_by_role("heading", name="5 partitions")).to_be_visible()
        assert (await queue.get_partitions()).partitions == 5


async def test_what_limits_a_job_is_shown_and_fits_on_a_telephone(connection: Connection):
    """A narrow table stacked the buttons of a row, and the page of a job named no limits and no group."""
    queue = Queue("main", connection)
    async with queue, browsing(queue) as page:
        await queue.set_limit("pool", concurrency=2)
        await queue.set_group("acme", weight=2)
        job = await queue.enqueue("send", limits=["pool:a"], group="acme")
        await page.set_viewport_size({"width": 400, "height": 800})
        await page.goto("/dashboard")
        await expect(page.locator("#groups tbody tr button")).to_have_count(3)
        tops = await page.locator("#groups tbody tr button").evaluate_all("(all) => all.map((one) => one.offsetTop)")
        assert len(set(tops)) == 1
        assert await page.evaluate("document.documentElement.scrollWidth") == 400
        await page.goto(f"/dashboard#/job/main:{job.id}")
        await expect(page.locator("#about")).to_contain_text("pool:a")
        await expect(page.locator("#about")).to_contain_text("acme")
