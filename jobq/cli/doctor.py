"""``jobq doctor``: looks at the Redis server and at the queues, and says what is wrong and what to type."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from jobq.cli import render
from jobq.cli.doctor_partitions import Finding, examine_partitions, memory_of
from jobq.cli.session import Queues, run, side_by_side
from jobq.engine.model.job import State
from jobq.engine.store.fitness import QUESTIONS, doubts, facts_of, refuse_unfit
from jobq.errors import JobqError, StoreRefused, StoreUnavailable, UnknownQueue
from jobq.redact import redact

if TYPE_CHECKING:
    import argparse

    from jobq.engine.queue.overview import Glance
    from jobq.engine.queue.queue import Queue
    from jobq.engine.store import Store
    from jobq.settings import Settings

SLOW_MS: Final = 20.0
"""A round trip that takes longer slows down every worker."""
SKEW_MS: Final = 5_000
LAG_MS: Final = 300_000
SAMPLED_DELAYED: Final = 300
ROUND_TRIPS: Final = 5
FINISHED: Final = (State.COMPLETED, State.FAILED)
WARNED: Final = 3
"""The exit code if there are only warnings."""


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """``jobq doctor``: exit code 0 if nothing is wrong, 1 if there is an error, 3 if there are only warnings."""
    found = run(examine(args.queue, settings))
    levels = [finding.level for finding in found]
    if args.json:
        for finding in found:
            render.say_json(finding)
    else:
        for finding in found:
            if finding.level != "ok":
                where = f" (queue {finding.queue})" if finding.queue else ""
                render.say(f"{finding.level}: {finding.check}{where}: {finding.message}")
                if finding.fix:
                    render.say(f"  type: {finding.fix}")
        bad = ", ".join(render.number_of(levels.count(level), level) for level in ("error", "warning"))
        render.say(f"{render.number_of(len(found), 'check')}: {bad if set(levels) != {'ok'} else 'nothing is wrong'}")
    return 1 if "error" in levels else WARNED if "warning" in levels else 0


async def examine(word: str | None, settings: Settings) -> list[Finding]:
    """All findings. A server that cannot be used is one of them."""
    found: list[Finding] = []
    servers: set[str] = set()
    try:
        async with Queues(settings) as opened:
            queues = await opened.closed(word)
            if not queues:
                found += await examine_server(opened.store)
                found.append(Finding("queues", "warning", redact(opened.nothing), "jobq work TARGET"))

            async def examine_one(pair: tuple[Queue, Glance | None]) -> list[Finding]:
                queue, glance = pair
                if glance is not None and glance.quiet:
                    return quiet(queue.name)
                # The queues of a target may be on several servers. One that cannot be used does not hide the others.
                seen: list[Finding] = []
                try:
                    await opened.open(queue)
                    if queue.store.connection.url not in servers:
                        servers.add(queue.store.connection.url)
                        seen += await examine_server(queue.store)
                    seen += await examine_queue(queue)
                except JobqError as error:
                    seen.append(refused(error, queue.name))
                return seen

            seen_of = await opened.glances(queues)
            if any(seen_of):
                servers.add(opened.store.connection.url)
                found += await examine_server(opened.store)
            for seen in await side_by_side(examine_one, list(zip(queues, seen_of, strict=True))):
                found += seen
    except UnknownQueue as error:
        found.append(Finding("queues", "error", redact(str(error)), "jobq queues"))
    except JobqError as error:
        found.append(refused(error))
    return found


def quiet(name: str) -> list[Finding]:
    """The findings of a queue in which nothing waits or runs, and on which nobody works."""
    return [
        Finding("layout", "ok", "scripts run, and the layout is known", queue=name),
        Finding("workers", "ok", render.number_of(0, "worker"), queue=name),
    ]


def refused(error: JobqError, queue: str = "") -> Finding:
    """A server that cannot be used, as a finding."""
    words = redact(str(error))
    if "READONLY" in words:
        return Finding(
            "server", "error", words, "redis-cli -u URL ROLE, which names the primary to use in --redis", queue
        )
    fix = "redis-cli -u URL PING, from this machine" if isinstance(error, StoreUnavailable) else ""
    return Finding("server", "error", words, fix, queue)


async def examine_server(store: Store) -> list[Finding]:
    """Version, persistence, eviction, memory, clock, latency and rights."""
    facts = facts_of(await store.commands(*QUESTIONS, (b"INFO", b"memory")), (*QUESTIONS, (b"INFO", b"memory")))
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version") or "of an unknown version"
    found = [Finding("version", "ok", f"{name} {version}")]
    try:
        refuse_unfit(facts, "none")
    except StoreRefused as error:
        found.append(refused(error))
    if "maxmemory-policy" not in facts or "aof_enabled" not in facts:
        fix = "redis-cli -u URL ACL SETUSER NAME +info '+config|get'"
        found.append(Finding("rights", "warning", "this user may not read INFO or CONFIG, so less was checked", fix))
    for words in doubts(facts, "none"):
        what = "maxmemory-policy noeviction" if "maxmemory-policy" in words else "appendonly yes"
        fix = f"redis-cli -u URL CONFIG SET {what}, then CONFIG REWRITE"
        check = "eviction" if "maxmemory-policy" in words else "persistence"
        found.append(Finding(check, "warning", words, fix))
    found.append(memory_of(facts))
    times: list[float] = []
    skew = 0.0
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        seconds, micros = await store.command(b"TIME")
        times.append((time.perf_counter() - began) * 1000)
        skew = abs(int(seconds) * 1000 + int(micros) / 1000 - time.time() * 1000)
    middle = sorted(times)[ROUND_TRIPS // 2]
    words = f"a round trip takes {middle:.1f} ms"
    slow = middle > SLOW_MS
    found.append(Finding("latency", "warning" if slow else "ok", words, "redis-cli -u URL --latency" if slow else ""))
    late = skew > SKEW_MS
    words = f"the clocks of the server and of this machine differ by {skew / 1000:.1f} s"
    found.append(Finding("clock", "warning" if late else "ok", words, "timedatectl, on both machines" if late else ""))
    return found


async def examine_queue(queue: Queue) -> list[Finding]:
    """Layout, scripts, workers, types and lag. The layout was checked when the queue was opened."""
    await queue.ready()
    name, stats, workers = queue.name, await queue.stats(), await queue.workers()
    found = [Finding("layout", "ok", "scripts run, and the layout is known", queue=name)]
    alive = [row for row in workers if row.alive]
    work = stats.waiting + stats.held + stats.delayed + stats.active
    if not alive and work:
        found.append(
            Finding("workers", "error", f"{render.number_of(work, 'job')} and no worker", "jobq work TARGET", name)
        )
    else:
        found.append(Finding("workers", "ok", render.number_of(len(alive), "worker"), queue=name))
    if silent := [row.id for row in workers if not row.alive]:
        stopped = render.number_of(len(silent), "worker")
        words = f"{stopped} stopped without a goodbye in the last day, the last one {silent[0]}"
        found.append(
            Finding("heartbeats", "warning", words, "look at their logs, for a kill or too little memory", name)
        )
    known = {type_ for row in alive for type_ in row.types}
    jobs = await queue.types_by_state() if alive else {}
    unfinished = {kind for state, kinds in jobs.items() if state not in FINISHED for kind in kinds if kind}
    if missing := sorted(unfinished - known):
        words = f"no living worker knows the types {', '.join(missing[:10])}"
        found.append(Finding("types", "error", words, "jobq work TARGET, with the code of these types", name))
    if alive and stats.delayed:
        found += await examine_payloads(queue, known)
    if len(queue.store.parts) > 1 or (queue.partitions or 1) > 1:
        found += await examine_partitions(queue)
    if stats.paused:
        found.append(Finding("paused", "warning", "the queue is paused", f"jobq resume {name}", name))
    if stats.oldest_waiting_ms and stats.oldest_waiting_ms > LAG_MS:
        words = f"a job has waited for {render.span(stats.oldest_waiting_ms / 1000)}"
        found.append(Finding("lag", "warning", words, f"jobq why --queue {name}", name))
    if stats.unreadable:
        words = f"stored counts cannot be read: {', '.join(stats.unreadable)}"
        found.append(Finding("counts", "warning", words, queue=name))
    return found


async def examine_payloads(queue: Queue, known: set[str]) -> list[Finding]:
    """Whether workers handed back jobs of types that they know."""
    # Such jobs are offered again within minutes, so they are among the first delayed ones.
    rows = (await queue.briefs(State.DELAYED, limit=SAMPLED_DELAYED)).jobs
    unread = [row for row in rows if row.unserved and not row.attempts_made and row.type in known]
    if not unread:
        return []
    words = f"workers could not read {render.number_of(len(unread), 'job')}, such as {queue.name}:{unread[0].id}"
    fix = "jobq check TARGET, with the code of the workers, says which payloads do not fit"
    return [Finding("payloads", "error", words, fix, queue.name)]
