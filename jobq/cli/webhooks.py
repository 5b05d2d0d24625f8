"""Commands of webhooks: webhooks ls, show, set, rm, rotate, test and deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from jobq.cli import render
from jobq.cli.session import one_queue, run
from jobq.engine.model.webhook import USUAL

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from jobq.engine.model.webhook import Webhook
    from jobq.engine.queue.queue import Queue
    from jobq.settings import Settings


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks ls``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            found = await queue.webhooks()
        if args.json:
            for one in found:
                render.say_json(one)
        elif found:
            head = ("WEBHOOK", "ENABLED", "FAILURES", "WAITING", "EVENTS", "URL")
            rows = [
                (one.name, "yes" if one.enabled else "no", one.failures, one.waiting, ",".join(one.events), one.url)
                for one in found
            ]
            render.say(*render.table(head, rows))
        else:
            render.say("there are no webhooks; make one with jobq webhooks set NAME URL")

    run(main())


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks show``."""
    _one(args, settings, lambda queue: queue.get_webhook(args.name))


def set_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks set``."""
    _one(
        args,
        settings,
        lambda queue: queue.put_webhook(
            args.name, args.url, events=args.events or USUAL, types=args.types, enabled=args.enabled
        ),
    )


def rotate(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks rotate``."""
    _one(args, settings, lambda queue: queue.rotate_webhook(args.name))


def rm(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks rm``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.delete_webhook(args.name)
            name = queue.name
        if args.json:
            render.say_json({"queue": name, "webhook": args.name, "removed": True})
        else:
            render.say(f"webhook {args.name} of queue {name} was removed")

    run(main())


def test(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks test``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            job = await queue.test_webhook(args.name)
        full_id = f"{job.queue.name}:{job.id}"
        if args.json:
            render.say_json({"id": full_id})
        else:
            render.say(f"job {full_id} delivers it; jobq show {full_id} says how it went")

    run(main())


def deliveries(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq webhooks deliveries``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            found = await queue.webhook_deliveries(args.name, limit=args.limit)
        if args.json:
            for one in found:
                render.say_json(one)
        elif found:
            head = ("DELIVERY", "EVENT", "STATE", "ATTEMPTS", "LAST", "ANSWER")
            rows = [
                (one.id, one.event, one.state, one.attempts_made, render.clock(one.at), one.status or one.error or "")
                for one in found
            ]
            render.say(*render.table(head, rows))
        else:
            render.say(f"nothing was delivered to {args.name} yet; jobq webhooks test {args.name} tries it")

    run(main())


def _one(args: argparse.Namespace, settings: Settings, act: Callable[[Queue], Awaitable[Webhook]]) -> None:
    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            found = await act(queue)
        if args.json:
            render.say_json(found)
            return
        facts: dict[str, Any] = {name: of for name, of in msgspec.structs.asdict(found).items() if of is not None}
        facts["created_at"] = render.clock(found.created_at)
        if found.failing_since is not None:
            facts["failing_since"] = render.clock(found.failing_since)
        for name, value in facts.items():
            render.say(f"{name:<13}  {','.join(value) if name in ('events', 'types') else value}")
        if found.secret is not None:
            render.say("Keep the secret: nobody can read it later.")

    run(main())
