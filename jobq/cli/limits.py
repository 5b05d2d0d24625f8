"""Commands of limits: limits ls, show, keys, set, reset, rm, close and open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.cli import render
from jobq.cli.session import one_queue, run
from jobq.engine.model.limits import QUEUE_RULE

if TYPE_CHECKING:
    import argparse

    from jobq.engine.model.limits import Band, LimitKeyRow, LimitRow, Rule
    from jobq.settings import Settings

RULES_HEAD = ("RULE", "CONCURRENCY", "RATE", "OVER", "FROM", "ACTIVE", "HELD", "CLOSED", "OPENS")
_ACTIONS = {
    "wait": "",
    "drop": "; jobs without room are dropped",
    "replace_oldest": "; a job without room replaces the oldest one that has not started",
    "kill_running": "; a job without room kills the oldest one that runs",
}
SHOWN = 10
"""Keys that ``limits show`` lists."""
KEYS_HEAD = ("KEY", "ACTIVE", "HELD", "OPENS")


def ls(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits ls``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            rows = sorted(await queue.limits(), key=lambda row: row.rule)
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            lines = [(row.rule, _shown(row.concurrency), _rates(row.rate), row.over, *_counts(row)) for row in rows]
            render.say(*render.table(RULES_HEAD, lines))
        else:
            render.say("no limits; set one: jobq limits set RULE --concurrency N")

    run(main())


def show(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits show``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            row = await queue.limit(args.rule)
            keys = [] if args.json else await queue.limit_keys(args.rule, limit=SHOWN)
        if args.json:
            render.say_json(row)
            return
        declared = row.declared
        facts = [
            ("rule", row.rule), ("concurrency", _shown(row.concurrency)), ("rate", _rates(row.rate)),
            ("over", row.over), ("from", _source(row)), ("active", row.active), ("held", row.held),
            ("closed", f"{row.closed} keys, all open {render.ago(row.closed_until)}" if row.closed else "no keys"),
            ("code", f"{_shown(declared.concurrency)} at once, rate {_rates(declared.rate)}" if declared else "-"),
        ]  # fmt: skip
        render.say(*(f"{name:<11} {text}" for name, text in facts))
        if keys:
            render.say("", *render.table(KEYS_HEAD, [_key(key) for key in keys]))

    run(main())


def keys(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits keys``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            rows = await queue.limit_keys(args.rule, limit=args.limit)
        if args.json:
            for row in rows:
                render.say_json(row)
        elif rows:
            render.say(*render.table(KEYS_HEAD, [_key(row) for row in rows]))
        else:
            render.say(f"no jobs under {args.rule} now")

    run(main())


def set_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits set``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            if args.dry_run:
                held = await queue.would_hold(args.rule, concurrency=args.most, rate=args.bands)
                if args.json:
                    render.say_json({"queue": queue.name, "rule": args.rule, "would_hold": held})
                else:
                    render.say(f"it would hold {held} {'job' if held == 1 else 'jobs'} now")
                return
            before = {row.rule: row for row in await queue.limits()}
            rule = await queue.set_limit(args.rule, concurrency=args.most, rate=args.bands, over=args.over)
            if args.json:
                render.say_json(
                    {
                        "queue": queue.name,
                        "rule": args.rule,
                        "concurrency": rule.concurrency,
                        "rate": rule.rate,
                        "over": rule.over,
                    }
                )
            else:
                render.say(
                    f"set {args.rule} of {queue.name}: {_shown(rule.concurrency)} at once, rate {_rates(rule.rate)}"
                    f"{_ACTIONS[rule.over]}{_replaced(rule, before.get(args.rule))}"
                )
                others = sorted(before.keys() - {QUEUE_RULE})
                if others and args.rule not in {QUEUE_RULE, *others}:
                    names = ", ".join(others)
                    render.say(f"{args.rule} is a new rule: only jobs that name it count under it; there were: {names}")

    run(main())


def reset(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits reset``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            declared = await queue.reset_limit(args.rule)
            if args.json:
                render.say_json({"queue": queue.name, "rule": args.rule, "declared": declared})
            elif declared is None:
                render.say(f"reset {args.rule} of {queue.name}: no code declares it, so there is no limit now")
            else:
                render.say(f"reset {args.rule} of {queue.name} to what the code declares")

    run(main())


def rm(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits rm``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            returns = await queue.remove_limit(args.rule)
            if args.json:
                render.say_json({"queue": queue.name, "rule": args.rule, "returns": returns})
            else:
                render.say(f"removed {args.rule} of {queue.name}{render.COMES_BACK if returns else ''}")

    run(main())


def close(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits close``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.close_limit(args.key, args.time)
            if args.json:
                render.say_json({"queue": queue.name, "key": args.key, "closed_ms": round(args.time * 1000)})
            else:
                render.say(f"closed {args.key} of {queue.name} for {render.span(args.time)}")

    run(main())


def open_(args: argparse.Namespace, settings: Settings) -> None:
    """``jobq limits open``."""

    async def main() -> None:
        async with one_queue(args.queue, settings) as queue:
            await queue.open_limit(args.key)
            if args.json:
                render.say_json({"queue": queue.name, "key": args.key, "closed_ms": 0})
            else:
                render.say(f"opened {args.key} of {queue.name}")

    run(main())


def _replaced(rule: Rule, before: LimitRow | None) -> str:
    """What held before. An operator who raises one number may not know that the call replaces the others, too."""
    if before is None or (before.concurrency, before.rate, before.over) == (rule.concurrency, rule.rate, rule.over):
        return ""
    return f"; it was {_shown(before.concurrency)} at once, rate {_rates(before.rate)}{_ACTIONS[before.over]}"


def _key(row: LimitKeyRow) -> tuple[Any, ...]:
    return row.key, row.active, row.held, render.ago(row.opens_at)


def _source(row: LimitRow) -> str:
    return "orphan" if row.orphan and row.source == "code" else row.source


def _counts(row: LimitRow) -> tuple[Any, ...]:
    return (
        _source(row),
        row.active,
        row.held,
        row.closed,
        render.ago(row.closed_until),
    )


def _shown(concurrency: int | None) -> str:
    return "any" if concurrency is None else str(concurrency)


def _rates(rate: tuple[Band, ...]) -> str:
    """As ``--rate`` takes them."""
    bands = [f"{band.count}/{render.span(band.per / 1000)}/{band.burst}{band.unit and '/'}{band.unit}" for band in rate]
    return ", ".join(bands) or "any"
