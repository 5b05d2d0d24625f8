"""``jobq events``: what happens to jobs, live."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from jobq.cli import render
from jobq.cli.session import on_stop_signals, one_queue, run, split_id

if TYPE_CHECKING:
    import argparse

    from jobq.engine.model.event import QueueEvent
    from jobq.settings import Settings


def events(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq events``. With --tell it sets what the queue tells."""
    if args.tell is not None:
        run(_set(args, settings))
    else:
        run(_follow(args, settings))


async def _set(args: argparse.Namespace, settings: Settings) -> None:
    async with one_queue(args.queue, settings) as queue:
        await queue.set_events(args.tell)
        name = queue.name
    if args.json:
        render.say_json({"queue": name, "events": args.tell})
    else:
        render.say(f"queue {name} tells {args.tell} from now on")


async def _follow(args: argparse.Namespace, settings: Settings) -> None:
    name, job_id = (args.queue, None) if args.job is None else split_id(args.job, args.queue)
    async with one_queue(name, settings) as queue:

        async def say() -> None:
            async for batch in queue.event_batches(since=args.since, job=job_id, names=args.names):
                for event in batch:
                    _say(event, as_json=args.json)

        following = asyncio.create_task(say())

        def stop() -> None:
            following.cancel()

        on_stop_signals(stop)
        await asyncio.wait([following])
        if not following.cancelled():
            following.result()


def _say(event: QueueEvent, *, as_json: bool) -> None:
    job = None if event.job is None else f"{event.queue}:{event.job}"
    if as_json:
        render.say_json(msgspec.structs.replace(event, job=job))
        return
    what = job or "events were dropped before they were read"
    value = "" if event.value is None else f"  {bytes(event.value).decode(errors='replace')}"
    render.say(f"{render.clock(event.at)}  {event.name:<9}  {what}{value}")
