"""jobq inside a FastAPI service (any ASGI service is the same): uvicorn --app-dir examples/embedding fastapi_app:app

The queue and a worker start and stop with the service (lifespan). REST and the dashboard are mounted under /jobq.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, HTTPException

from jobq import JobNotFound, Queue, ResultTimeout, Worker
from jobq.http import asgi

queue = Queue("reports")


@queue.task(attempts=3, timeout=60)
async def report(year: int) -> dict[str, int]:
    """Pretends to work for long."""
    return {"year": year, "rows": year % 100}


jobs = asgi(queue)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Open the queue and run a worker. Both end gracefully."""
    async with queue, jobs, Worker(queue, concurrency=10) as worker:
        worker.start()
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/jobq", jobs)


@app.post("/reports/{year}", status_code=202)
async def order(year: int) -> dict[str, str]:
    """Enqueue a report."""
    job = await report.enqueue(year=year)
    return {"job": job.id}


@app.get("/reports/{job_id}")
async def fetch(job_id: str) -> dict[str, int]:
    """Wait for the report, five seconds at most."""
    try:
        return msgspec.json.decode(await queue.result(job_id, timeout=5), type=dict[str, int])
    except JobNotFound:
        raise HTTPException(404, "no such report") from None
    except ResultTimeout:
        raise HTTPException(503, "not written yet; ask again") from None
