"""A web service that sends mails in the background: uvicorn fastapi_service:app"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from jobq import Queue, Worker
from jobq.http import asgi

queue = Queue("mail")


@queue.task(attempts=5, timeout=30)
async def welcome(to: str) -> str:
    """Work that a visitor should not wait for. Your mail server's client belongs here."""
    return f"welcomed {to}"


rest = asgi(queue)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """The queue and a worker start and stop with the service."""
    async with queue, rest, Worker(queue) as worker:
        worker.start()
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/jobq", rest)


@app.post("/signups", status_code=202)
async def sign_up(to: str) -> dict[str, str]:
    """Answer at once. The mail is sent in the background."""
    job = await welcome.enqueue(to=to)
    return {"job": f"mail:{job.id}"}
