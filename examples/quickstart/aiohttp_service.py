"""A web service that sends mails in the background: python aiohttp_service.py"""

from collections.abc import AsyncIterator

from aiohttp import web

from jobq import Queue, Worker, create_app

queue = Queue("mail")


@queue.task(attempts=5, timeout=30)
async def welcome(to: str) -> str:
    """Work that a visitor should not wait for. Your mail server's client belongs here."""
    return f"welcomed {to}"


async def sign_up(request: web.Request) -> web.Response:
    """Answer at once. The mail is sent in the background."""
    job = await welcome.enqueue(to=request.query["to"])
    return web.json_response({"job": f"mail:{job.id}"}, status=202)


async def background(_: web.Application) -> AsyncIterator[None]:
    """The queue and a worker start and stop with the service."""
    async with queue, Worker(queue) as worker:
        worker.start()
        yield


def make_app() -> web.Application:
    """The service, with the REST interface and the dashboard of jobq under /jobq."""
    app = web.Application()
    app.router.add_post("/signups", sign_up)
    app.cleanup_ctx.append(background)
    app.add_subapp("/jobq", create_app(queue))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
