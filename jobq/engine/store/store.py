"""One method per script. A method makes a ``Call``; ``do`` sends one, ``trip`` several in one write.

Every verb may be repeated: settles are fenced, enqueues, claims and what operators ask carry ids. So a call whose reply
was lost is sent again, a few times and with growing pauses, before ``StoreUnavailable`` is raised.
"""

from __future__ import annotations

import time
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, TypeVar

from jobq.engine.store.calls import (
    Call,
    Claimed,
    Settled,
    read_as_is,
    read_claimed,
    read_settled,
    read_states,
)
from jobq.engine.store.fitness import QUESTIONS, check_fitness
from jobq.engine.store.keys import LAYOUT, registry_key
from jobq.engine.store.listening import Listening
from jobq.engine.store.migrations import MIGRATIONS
from jobq.errors import DurabilityUnavailable, StoreError, StoreRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobq.engine.store.link import Argument, Connection
    from jobq.engine.store.migrations import Migration

T = TypeVar("T")

CLAIM_BYTES: Final = 1 << 20
"""Bytes of specs after which a claim or a reap takes no more jobs."""
ALIVE_MS: Final = 30_000
FORGET_MS: Final = 24 * 3600 * 1000
"""A worker not heard of for longer is not counted; it loses its row."""
WORKERS_SHOWN: Final = 1000
SEQUENCE_BOUND: Final = 1 << 40
"""A sequence of waiting that passed this is rebased. It would run into the next priority at twice as much."""
YOUNG_MS: Final = 5_000
"""A finished job stays at least as long, whatever the retention is. Somebody may wait for its result, or repeat its
enqueue because the reply was lost."""
YOUNG: Final = 50_000
"""Not more than so many of them, so that memory is bounded in a queue of any speed."""
TYPES_MAX: Final = 256
"""Types of a queue that are published. Others still work, with their code."""
COMPARED_MS: Final = 120_000
"""What a publisher has said is compared for that long with what others say. It says so again twice a minute."""
MINUTES_KEPT: Final = 24 * 60


class Store(Listening):
    """The verbs of one queue. ``clock`` gives ``now`` in unix ms as text; '' means the server's own time."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        prefix: str = "jobq",
        clock: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(connection, name, prefix)
        self._clock = clock
        self._offset_ms: float | None = None

    @property
    def now(self) -> Argument:
        """The ``now`` argument of a script."""
        return self._clock() if self._clock else b""

    def now_ms(self) -> int:
        """The server's time as known here, unix ms: its clock at the last look, carried on by the monotonic one."""
        if self._clock:
            return int(self._clock())
        if self._offset_ms is None:
            return time.time_ns() // 1_000_000
        return int(time.monotonic() * 1000 + self._offset_ms)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(
        self, durability: str = "none", *, wanted: int = LAYOUT, migrations: Mapping[int, Migration] = MIGRATIONS
    ) -> None:
        """Check the server, bring the layout to the ``wanted`` version, look at the server's clock.

        A queue that nobody has used is left without a trace: ``register`` writes its layout.

        A migration that dies in the middle leaves the old version standing. The next opener goes on with it.

        :raises StoreRefused: the server is unfit (see fitness.py), the layout is newer than this program's, or it is
            older and there is no way from it.
        """
        await self.check(durability)
        await self.load()
        target, migrated_from = wanted, ""
        while (layout := int(await self.do(Call("open", [target, migrated_from], read_as_is)))) < wanted:
            if layout not in migrations:
                raise StoreRefused(
                    f"queue {self.name!r} has layout {layout}, and this jobq knows no way from there to {wanted}:"
                    " drain it with the jobq that made it, or use another prefix"
                )
            while await migrations[layout](self):
                pass
            target, migrated_from = layout + 1, str(layout)
        self._check_layout(layout, wanted)
        await self.look_at_clock()

    def _check_layout(self, layout: int, wanted: int) -> None:
        if layout > wanted:
            raise StoreRefused(
                f"queue {self.name!r} has layout {layout}, this jobq knows {wanted}: update jobq, or use another prefix"
            )

    async def check(self, durability: str) -> None:
        """Look at the server.

        :raises StoreRefused: it is unfit (``DurabilityRefused``: it cannot give the ``durability``).
        """
        check_fitness(await self.commands(*QUESTIONS), self.connection, durability)

    @property
    def is_registered(self) -> tuple[Argument, ...]:
        """The command that asks whether the queue is in the registry: 1, or 0."""
        return (b"SISMEMBER", registry_key(self.prefix), self.name)

    async def register(self) -> None:
        """Enter the queue into the registry and write its layout: at the first enqueue, pause or worker, so that a
        mistyped name leaves no trace.

        :raises StoreFull: the queue is new, and Redis is at maxmemory.
        :raises StoreRefused: the layout is newer than this program's.
        """
        # Look before writing. At maxmemory writes are refused, and a worker must be able to start in order to drain the
        # queue.
        meta = self.keys["meta"]
        layout = await self.command(b"HGET", meta, b"layout")
        if layout is None:
            await self.command(b"HSETNX", meta, b"layout", LAYOUT)
        else:
            self._check_layout(int(layout), LAYOUT)
        if not await self.command(*self.is_registered):
            await self.command(b"SADD", registry_key(self.prefix), self.name)

    async def unregister(self) -> None:
        """Take a dropped queue out of the registry, unless somebody has used it again meanwhile."""
        registry = registry_key(self.prefix)
        await self.command(b"SREM", registry, self.name)
        if await self.command(b"EXISTS", self.keys["jobs"], self.keys["workers"]):
            await self.command(b"SADD", registry, self.name)

    async def look_at_clock(self) -> None:
        """Learn the server's clock; half the round trip is the error."""
        before = time.monotonic()
        seconds, micros = await self.command(b"TIME")
        if time.monotonic() - before > 0.5:
            # it had to be sent again, and nobody knows in which half the time went
            before = time.monotonic()
            seconds, micros = await self.command(b"TIME")
        middle = (before + time.monotonic()) / 2
        self._offset_ms = int(seconds) * 1000 + int(micros) / 1000 - middle * 1000

    async def queues(self) -> list[str]:
        """All queues under the prefix, sorted."""
        return sorted(name.decode() for name in await self.command(b"SMEMBERS", registry_key(self.prefix)))

    # -- producers -------------------------------------------------------------------------------------------------

    def enqueue(self, jobs: list[Argument]) -> Call[list[Any]]:
        """New jobs: flat triples id, spec, options as enqueue.lua reads them; sent without options if no job has any.

        Answers triples of what was refused.
        """
        plain = not any(jobs[2::3])
        args = [self.now, *jobs]
        if plain:
            del args[3::3]
        return Call("enqueue", args, read_as_is, short=plain)

    async def do_durably(self, calls: Sequence[Call[T]], durability: str, timeout_ms: int) -> list[T]:
        """Enqueues in one write; returns only when it is fsynced here or stands on a replica.

        :raises StoreError: a call was refused; others may stand.
        :raises DurabilityUnavailable: it was not confirmed in time, or the server cannot; the jobs stand all the same.
        """
        wait: tuple[Argument, ...] = (
            (b"WAITAOF", 1, 0, timeout_ms) if durability == "fsynced" else (b"WAIT", 1, timeout_ms)
        )
        *answers, confirmed = await self.trip(*calls, extra=wait, patience=timeout_ms / 1000)
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        if isinstance(confirmed, Exception):
            raise DurabilityUnavailable(f"the server cannot confirm {durability!r}: {confirmed}; the jobs are enqueued")
        # WAITAOF answers (local, replicas), WAIT a number
        copies: int = confirmed[0] if durability == "fsynced" else confirmed
        if not copies:
            raise DurabilityUnavailable(
                f"{durability!r} was not confirmed within {timeout_ms} ms; the jobs are enqueued"
            )
        return answers

    # -- workers ---------------------------------------------------------------------------------------------------

    def forward(self, limit: int) -> Call[list[int]]:
        """Due jobs to waiting. Answers how many, and ms until the next one is due (-1: none)."""
        return Call("forward", [self.now, limit], read_as_is)

    def claim(
        self, want: int, lease_ms: int, worker: str, lane: str, request: int, *, repeated: bool, room: bool = False
    ) -> Call[Claimed | None]:
        """Up to ``want`` jobs, first by priority, under a lease; fewer once their specs come to ``CLAIM_BYTES``.

        ``room``: the worker could take more.
        """
        args: list[Argument] = [self.now, want, lease_ms, worker, lane, request]
        rest = (int(room), CLAIM_BYTES)
        return Call("claim", [*args, int(repeated), *rest], read_claimed, repeat=[*args, 1, *rest])

    def complete(self, jobs: list[Argument], counts: list[Argument]) -> Call[Settled]:
        """Held jobs to completed: flat quads id, token, result, retention ms; ``counts``: flat pairs for metrics."""
        # jobs of one claim have one token: said once, it is half of the words
        groups: dict[tuple[Argument, Argument], list[Argument]] = {}
        words = iter(jobs)
        for job_id, token, result, retention in zip(words, words, words, words, strict=True):
            group = groups.get((token, retention))
            if group is None:
                groups[token, retention] = [job_id, result]
            else:
                group += (job_id, result)
        args: list[Argument] = [self.now, len(counts) // 2, *counts]
        for (token, retention), pairs in groups.items():
            args += (token, retention, len(pairs) // 2, *pairs)
        return Call("complete", args, read_settled)

    def reschedule(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Held jobs to delayed, charged: flat groups id, token, attempt, delay ms, error record. Answers lost ids."""
        return Call("reschedule", [self.now, *jobs], read_as_is)

    def fail(self, jobs: list[Argument]) -> Call[Settled]:
        """Held jobs to failed: flat quintuples id, token, attempt, error record, retention ms."""
        return Call("fail", [self.now, *jobs], read_settled)

    def release(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Held jobs back to the front of waiting, uncharged: flat pairs id, token. Answers the lost."""
        return Call("release", [self.now, *jobs], read_as_is)

    def defer(self, jobs: list[Argument], first_ms: int, longest_ms: int, types: Argument) -> Call[list[bytes]]:
        """Held jobs of an unknown type to delayed, uncharged: flat pairs id, token. Answers the lost.

        ``types`` is a JSON list of them, for the other workers: ``Source.heard``.
        """
        return Call("defer", [self.now, first_ms, longest_ms, types, *jobs], read_as_is)

    def renew(self, jobs: list[Argument], lease_ms: int) -> Call[list[bytes]]:
        """Leases run on from now: flat pairs id, token. Answers the lost."""
        return Call("renew", [self.now, lease_ms, *jobs], read_as_is)

    def progress(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Flat triples id, token, JSON value. Answers the lost."""
        return Call("progress", jobs, read_as_is)

    def log(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Flat triples id, token, lines (JSON, one a line). Answers the lost."""
        return Call("log", jobs, read_as_is)

    def reap(self, limit: int, lease_ms: int, sweeper: str, gap_ms: int, grace_ms: int) -> Call[Claimed | None]:
        """Jobs whose lease ran out, claimed by the sweeper; fewer once their specs come to ``CLAIM_BYTES``."""
        return Call("reap", [self.now, limit, lease_ms, sweeper, gap_ms, grace_ms, CLAIM_BYTES], read_claimed)

    def trim(
        self,
        keep_completed: int,
        keep_failed: int,
        keep_for_ms: int,
        page: int,
        young_ms: int = YOUNG_MS,
        young: int = YOUNG,
    ) -> Call[int]:
        """A page of what is beyond the retention goes. Answers how many went."""
        return Call("trim", [self.now, keep_completed, keep_failed, keep_for_ms, page, young_ms, young], int)

    def expire(self, page: int) -> Call[int]:
        """A page of outlived deduplication keys and old answers goes, and old minutes of metrics. Answers how many."""
        return Call("expire", [self.now, page, MINUTES_KEPT], int)

    def rebase(self, page: int, bound: int = SEQUENCE_BOUND) -> Call[int]:
        """A page of the jobs in waiting gets low places again, if a sequence passed the bound. Answers 1: go on."""
        return Call("rebase", [page, bound], int)

    def heartbeat(self, worker: str, info: bytes) -> Call[int]:
        """The worker lives; empty info: it leaves. Answers how many workers there are."""
        return Call("heartbeat", [self.now, worker, info, FORGET_MS], int)

    def publish(self, publisher: str, rows: Sequence[Argument], *, started: bool) -> Call[list[bytes]]:
        """What is known of types: flat pairs type, row. Answers triples type, publisher, row of what others say.

        ``started``: the publisher has just started, so what it says counts from now on.
        """
        args: list[Argument] = [self.now, publisher, int(started), TYPES_MAX, COMPARED_MS, *rows]
        return Call("publish", args, read_as_is)

    # -- operators -------------------------------------------------------------------------------------------------

    def request(self) -> str:
        """The id of an operator's request. Its answer is recorded under it, so that a repetition gets the same one."""
        return token_hex(8)

    def pause(self) -> Call[list[str]]:
        """No claims from now on. Answers ['running'], or [''] when the queue was paused already."""
        return Call("pause", [self.now, self.request()], read_states)

    def resume(self) -> Call[list[str]]:
        """Claims go on. Answers ['paused'], or [''] when the queue was running already."""
        return Call("resume", [self.now, self.request()], read_states)

    def kill(self, ids: Sequence[str], record: bytes, retention_ms: int | str = "") -> Call[list[str]]:
        """Unfinished jobs to failed. Answers per id the state it stood in, or ''. ``retention_ms`` '': the queue's."""
        return Call("kill", [self.now, self.request(), record, retention_ms, *ids], read_states)

    def retry(self, ids: Sequence[str | bytes]) -> Call[list[str]]:
        """Finished jobs to waiting. Answers per id the state it stood in, '' or 'key <holder>'."""
        return Call("retry", [self.now, self.request(), *ids], read_states)

    def promote(self, ids: Sequence[str]) -> Call[list[str]]:
        """Delayed jobs to waiting now. Answers per id 'delayed' or ''."""
        return Call("promote", [self.now, self.request(), *ids], read_states)

    def reprioritise(self, ids: Sequence[str], priority: int) -> Call[list[str]]:
        """Another priority for unstarted jobs. Answers per id its state, or ''."""
        return Call("reprioritise", [self.now, self.request(), priority, *ids], read_states)

    def remove(self, ids: Sequence[str | bytes]) -> Call[list[str]]:
        """Jobs that are not active go altogether. Answers per id the state it stood in, or ''."""
        return Call("remove", [self.now, self.request(), *ids], read_states)

    def drop(self, *, force: bool) -> Call[list[int]]:
        """The queue with all its keys. Answers how many jobs and living workers it has, and 1 when it was dropped."""
        return Call("drop", [self.now, ALIVE_MS, int(force)], read_as_is)

    # -- readers ---------------------------------------------------------------------------------------------------

    def ready(self) -> Call[bytes | None]:
        """Whether a script runs on the queue's keys. Answers the layout, or None where nobody has opened the queue."""
        return Call("ready", [], read_as_is)

    def stats(self) -> Call[list[Any]]:
        """As stats.lua returns it."""
        return Call("stats", [self.now, ALIVE_MS], read_as_is)

    def page(
        self,
        state: str,
        *,
        reverse: bool,
        limit: int,
        scan: int,
        prefix: bytes,
        highest: str,
        cursor: tuple[str, str | bytes],
    ) -> Call[list[Any]]:
        """Ids of one state: ids, then score and id to go on from ('' at the end)."""
        args: list[Argument] = [int(reverse), limit, scan, prefix, highest, *cursor]
        return Call("page", args, read_as_is, keys=(self.keys[state], self.keys["jobs"]))

    def rows(self, ids: Sequence[str | bytes], *, brief: bool = False) -> Call[list[Any]]:
        """Rows of the first of these jobs, as rows.lua returns them: fewer than asked for, where they are large."""
        return Call("rows", [self.now, int(brief), *ids], read_as_is)

    def results(self, ids: Sequence[str | bytes]) -> Call[list[bytes]]:
        """Flat pairs state, row of the first of these jobs: fewer than were asked for, where they are large."""
        return Call("results", list(ids), read_as_is)

    async def logs(self, job_id: str) -> bytes:
        """The lines of one job, JSON, one a line."""
        return await self.command(b"HGET", self.keys["logs"], job_id) or b""

    async def workers(self) -> list[tuple[bytes, bytes, int]]:
        """Rows of the registry: worker, info and last heartbeat, unix ms."""
        # the latest: workers that crash at their start, all day long, leave thousands of rows
        seen = await self.command(b"ZREVRANGE", self.keys["workers"], 0, WORKERS_SHOWN - 1, b"WITHSCORES")
        if not seen:
            return []
        info = await self.command(b"HMGET", self.keys["workers_info"], *seen[::2])
        rows = zip(seen[::2], info, seen[1::2], strict=True)
        # a row without info has just left
        return [(worker, row, int(float(at))) for worker, row, at in rows if row is not None]

    async def types(self, names: Sequence[str]) -> list[bytes | None]:
        """What is published of these types."""
        return await self.command(b"HMGET", self.keys["types"], *names)

    async def type_names(self) -> list[bytes]:
        """The types of which something is published."""
        return await self.command(b"HKEYS", self.keys["types"])


async def give_wake_back(store: Store) -> None:
    """Put the token back: it was taken by a worker that cannot use it."""
    await store.command(b"ZADD", store.keys["wake"], 0, b"t")
