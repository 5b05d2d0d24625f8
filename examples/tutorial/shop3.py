"""Step 3: a report that takes long shows its progress, and every tenant gets its turn."""

from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from jobq import Concurrency, Context, JobNotFound, Queue, ResultTimeout, Worker, create_app, inject

queue = Queue("shop")


class Report(msgspec.Struct):
    """What a report says. A result is checked and sent as JSON."""

    tenant: str
    orders: int
    total: float


@queue.task(timeout=600, group="{tenant}", limits=[Concurrency(2, by="tenant")])
def report(tenant: str, orders: list[float], ctx: Context = inject) -> Report:
    """A plain function runs in a thread. So it may compute or read files without blocking others."""
    total = 0.0
    for done, amount in enumerate(orders, 1):
        total += amount
        ctx.progress({"done": done, "of": len(orders)})
    ctx.log(f"added {len(orders)} orders")
    return Report(tenant, len(orders), total)


async def order_report(request: web.Request) -> web.Response:
    """Enqueue a report, and say where it will be."""
    job = await report.enqueue(tenant=request.match_info["tenant"], orders=await request.json())
    return web.json_response({"at": f"/reports/{job.id}"}, status=202)


async def fetch_report(request: web.Request) -> web.Response:
    """The report, or 202 while it is being written."""
    try:
        result = await queue.result(request.match_info["id"], timeout=2)
    except ResultTimeout:
        return web.json_response({"state": "not written yet; ask again"}, status=202)
    except JobNotFound:
        raise web.HTTPNotFound(reason="there is no such report") from None
    return web.Response(body=bytes(result), content_type="application/json")


async def background(_: web.Application) -> AsyncIterator[None]:
    """A worker inside the service, for now."""
    async with queue, Worker(queue) as worker:
        worker.start()
        yield


def make_app() -> web.Application:
    """The service."""
    app = web.Application()
    app.router.add_post("/tenants/{tenant}/reports", order_report)
    app.router.add_get("/reports/{id}", fetch_report)
    app.cleanup_ctx.append(background)
    app.add_subapp("/jobq", create_app(queue))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
