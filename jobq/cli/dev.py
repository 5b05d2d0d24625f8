"""``jobq dev``: Redis server, REST and workers with one command, and a summary of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from jobq.cli import render
from jobq.cli.example import example
from jobq.cli.serve import check_bind, listen, url
from jobq.cli.session import on_stop_signals, run
from jobq.cli.supervisor import Supervisor, follow_supervisor
from jobq.cli.target import load_target
from jobq.cli.work import SETTLING, command, supervise
from jobq.logging import configure
from jobq.redact import redact
from jobq.settings import Settings

if TYPE_CHECKING:
    import argparse

    from jobq.engine.queue.queue import Queue

GRACE = 3.0
"""Default seconds that running jobs get after Ctrl-C. A developer does not want to wait 25 seconds."""


def dev(args: argparse.Namespace, settings: Settings) -> int:
    """Run everything until Ctrl-C. ``--reload`` also restarts REST, because it serves the types and their schemas."""
    if "JOBQ_GRACE" not in os.environ:
        os.environ["JOBQ_GRACE"] = str(GRACE)
        settings = Settings.from_env()
    configure(settings)
    check_bind(settings)
    follow_supervisor(grace=settings.grace + 2 * SETTLING)
    if args.reload:
        queues = load_target(args.target)
        # The other flags are in the environment.
        words = ["dev", args.target, f"--processes={args.processes}"]
        supervisor = partial(
            Supervisor,
            [sys.executable, "-m", "jobq", *words],
            1,
            name="dev",
            grace=settings.grace + 2 * SETTLING,
            restarts=True,
        )
        return run(supervise(supervisor, queues, reload=True))
    return run(_dev(args.target, load_target(args.target), args.processes, settings))


async def _dev(target: str, queues: list[Queue], processes: int, settings: Settings) -> int:
    stop = asyncio.Event()
    supervisor = Supervisor(command(target), processes, name="worker", grace=settings.grace + SETTLING)

    def on_signal() -> None:
        first = not stop.is_set()
        stop.set()
        supervisor.stop()
        if first:
            render.complain("stopping; press Ctrl-C again to stop at once")

    on_stop_signals(on_signal)
    bound: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(listen(queues, settings, stop, lambda host, port: bound.set_result((host, port))))
    await asyncio.wait([serving, bound], return_when=asyncio.FIRST_COMPLETED)
    if bound.done():
        with contextlib.suppress(BrokenPipeError):  # Jobs run on if nobody reads the output any more.
            render.say(*screen(queues, settings, url(*bound.result()), processes))
        serving.add_done_callback(lambda _: stop.is_set() or supervisor.stop())
        code = await supervisor.run()
        stop.set()
        await serving
        return code
    bound.cancel()
    await serving
    return 0


def screen(queues: list[Queue], settings: Settings, rest: str, processes: int) -> list[str]:
    """The summary, and three commands to try. The first one enqueues a job that the queue accepts."""
    first = queues[0]
    jobs = f"{settings.concurrency} jobs at a time each"
    servers = dict.fromkeys(_server(queue) for queue in queues)
    rows = [
        *(("queue", f"{queue.name}: {', '.join(queue.tasks) or 'no types'}") for queue in queues),
        *(("redis", words) for words in servers),
        ("rest", f"{rest}  (documentation: {rest}/docs)"),
        ("look", f"{rest}/dashboard"),
        ("workers", f"{processes} {'process' if processes == 1 else 'processes'}, {jobs}"),
    ]
    key = '-H "Authorization: Bearer $KEY" ' if settings.api_keys else ""
    job = example(first)
    body = "" if job is None else shlex.quote(msgspec.json.encode(job).decode())
    curls = [
        f"curl {key}{rest}/jobs/enqueue -H 'Content-Type: application/json' -d {body}"
        if body
        else f"open {rest}/docs  # how to enqueue jobs of {', '.join(first.tasks)}",
        f"curl {key}{rest}/jobs/stats",
        f"curl {key}'{rest}/jobs?state=completed&limit=3'",
    ]
    return [
        "",
        *(f"  {name:<9}{words}" for name, words in rows),
        "",
        "  Try, in another terminal:",
        "",
        *(f"  {line}" for line in curls),
        "",
        "  Ctrl-C stops everything and keeps the data.",
        "",
    ]


def _server(queue: Queue) -> str:
    address = queue.store.connection.url
    embedded = queue.settings.redis_url is None and address.endswith(".server")
    return f"embedded, data in {queue.settings.data_path}" if embedded else redact(address)
