"""jobq inside an aiohttp application: python examples/embedding/aiohttp_app.py

The queue and a worker start and stop with the application (cleanup_ctx). jobq's own REST is mounted under /jobq.
"""

from collections.abc import AsyncIterator

from aiohttp import web

from jobq import Queue, Worker, create_app

queue = Queue("signups")


@queue.task(attempts=5, timeout=30)
async def welcome(name: str) -> str:
    """Work that a visitor should not wait for."""
    return f"Welcome, {name}!"


async def sign_up(request: web.Request) -> web.Response:
    """Answer at once. The mail is sent in the background."""
    job = await welcome.enqueue(name=(await request.json())["name"])
    return web.json_response({"job": f"signups:{job.id}"}, status=202)


async def background(_: web.Application) -> AsyncIterator[None]:
    """A worker in this process. It could also run elsewhere: jobq work examples/embedding/aiohttp_app.py:queue"""
    async with queue, Worker(queue, concurrency=10) as worker:
        worker.start()
        yield


def make_app() -> web.Application:
    """The application. Only the queue and its tasks are global."""
    app = web.Application()
    app.router.add_post("/signups", sign_up)
    app.cleanup_ctx.append(background)
    app.add_subapp("/jobq", create_app(queue))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
