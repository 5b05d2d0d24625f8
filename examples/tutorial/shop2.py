"""Step 2: a web service enqueues, and a request that is sent twice makes one job."""

from collections.abc import AsyncIterator

from aiohttp import web

from jobq import Backoff, Queue, Worker, create_app

queue = Queue("shop")


@queue.task(attempts=5, backoff=Backoff(delay=0.2), timeout=30)
async def send_mail(to: str, subject: str) -> str:
    """The client of your mail server belongs here."""
    return f"sent {subject!r} to {to}"


async def sign_up(request: web.Request) -> web.Response:
    """Answer at once. Who signs up twice in a day gets one mail."""
    to = (await request.json())["to"]
    job = await send_mail.options(key=f"welcome:{to}", key_ttl=86_400).enqueue(to=to, subject="Welcome")
    return web.json_response({"job": f"shop:{job.id}", "duplicate": job.duplicate}, status=202)


async def background(_: web.Application) -> AsyncIterator[None]:
    """A worker inside the service, for now."""
    async with queue, Worker(queue) as worker:
        worker.start()
        yield


def make_app() -> web.Application:
    """The service."""
    app = web.Application()
    app.router.add_post("/signups", sign_up)
    app.cleanup_ctx.append(background)
    app.add_subapp("/jobq", create_app(queue))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
