"""One method per script. A method makes a ``Call``; ``do`` sends one, ``trip`` several in one write.

Every call can be repeated safely: scripts of workers are fenced, and enqueues, claims and operators' requests have ids.
So a call whose reply was lost is sent again a few times, with growing pauses, before ``StoreUnavailable`` is raised.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from jobq.engine.model.spread import Spread
from jobq.engine.store.calls import (
    Call,
    Claimed,
    Settled,
    read_as_is,
    read_claimed,
    read_lapsed,
    read_numbers,
    read_settled,
    read_states,
    repeat_claim,
    repeat_enqueue,
    repeat_unique,
)
from jobq.engine.store.reading import ALIVE_MS, LINES_COUNTED, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobq.engine.store.packing import Argument

CLAIM_MAX: Final = 125
"""Jobs per claim: as many as one ``CALL`` of a producer, for the same reason."""
CLAIM_BYTES: Final = 1 << 20
"""Bytes of specs after which a claim or a reap takes no more jobs."""
FORGET_MS: Final = 24 * 3600 * 1000
"""The row of a worker without a heartbeat for longer is removed."""
SEQUENCE_BOUND: Final = 1 << 40
"""A sequence of waiting beyond this number is rebased. It would reach the next priority at twice this number."""
YOUNG_MS: Final = 5_000
"""The minimum time for which a finished job is kept, whatever its retention is. A caller may wait for its result, or
repeat its enqueue because the reply was lost."""
YOUNG: Final = 50_000
"""The most jobs that are kept in this way, so that memory stays bounded in a fast queue."""
NO_BOUND: Final = 1 << 53
"""A bound that no number of jobs and no time in ms reaches."""
TYPES_MAX: Final = 256
"""The most published types of a queue. Tasks of further types still work."""
COMPARED_MS: Final = 120_000
"""The time for which a published type is compared with those of other publishers, which publish twice a minute."""
OVERFLOW_PAGE: Final = 50
"""Jobs about which one call of overflow decides. Each may end another job."""
MINUTES_KEPT: Final = 2 * 60


class Store(Reading):
    """The scripts of one queue, as methods."""

    rules_max, limit_keys_max, breakers_max, groups_max = 1000, 8, 1000, 10_000
    """Rules of limits that the queue may have, limit keys of a job, circuit breakers, and groups with settings. A queue
    sets them from its settings."""

    limited = False
    """The queue is known to have limits. Until a reply says so, calls leave out the keys of limits, so that a queue
    without limits pays nothing for them."""

    decides = False
    """Rules of the queue are known to have an action for jobs over their limit, so ``overflow`` comes before
    ``admit``."""

    late = False
    """The last claim met a job that did not start in time."""

    spread_now = Spread()
    """Over how many partitions the queue is spread, as far as it is known."""

    @property
    def parts(self) -> list[Store]:
        """The stores of all partitions of the queue. Only this one, if it is one partition itself."""
        return [self]

    def part_of(self, job_id: str | bytes) -> Store:
        """The store of the partition that the id names."""
        return self

    # -- producers -------------------------------------------------------------------------------------------------

    def enqueue(self, jobs: list[Argument]) -> Call[list[Any]]:
        """Add jobs, given as flat triples id, spec, options (see enqueue.lua). Sent without options if no job has any.

        Returns triples for the jobs that were not written.
        """
        plain = not any(jobs[2::3])
        args = [self.now, *jobs] if plain else [self.now, 0, *jobs]
        if plain:
            del args[3::3]
        return Call("enqueue", args, read_as_is, repeat=repeat_enqueue, short=plain)

    def enqueue_unique(self, jobs: list[Argument]) -> Call[list[Any]]:
        """Add jobs with keys, given as flat groups of four: id, spec, options, uniqueness (see enqueue_unique.lua).

        Returns groups of five for the jobs that were not written.
        """
        more = any(
            isinstance(words, str) and (" kill_running " in words or " replace_all " in words) for words in jobs[3::4]
        )
        return Call("enqueue_unique", [self.now, 0, *jobs], read_as_is, repeat=repeat_unique, short=not more)

    # -- workers ---------------------------------------------------------------------------------------------------

    def forward(self, limit: int) -> Call[list[int]]:
        """Move due jobs to waiting. Returns their number, ms until the next job is due (-1: none), and 1 if held jobs
        wait for ``admit``."""
        return Call("forward", [self.now, limit], self._read_forwarded, short=not self.limited)

    def _read_forwarded(self, reply: list[int]) -> list[int]:
        self.limited |= reply[2] == 1
        return reply

    def admit(self, want: int, looks: int, claims: int) -> Call[list[int]]:
        """Move up to ``want`` held jobs to waiting where their limits allow it. Returns their number, ms until the
        next token is free (-1: none), and 1 if held jobs remain that it did not look at, 2 if ``overflow`` comes first.

        ``claims``: the caller claims afterwards: 0 not, 1 once, 2 as long as there are jobs.
        """
        return Call("admit", [self.now, want, looks, claims], self._read_admitted)

    def _read_admitted(self, reply: list[int]) -> list[int]:
        self.decides |= reply[2] == 2
        return reply

    def overflow(self, ids: Sequence[str], page: int = OVERFLOW_PAGE) -> Call[list[bytes]]:
        """Decide about jobs over the limits of rules with an action; without ids about the first ``page`` of them.
        Returns a word per id: b"dropped", b"replaced_oldest", b"killed_running" or b"" (see overflow.lua)."""
        return Call("overflow", [self.now, page, *ids], read_as_is)

    def claim(
        self,
        want: int,
        lease_ms: int,
        worker: str,
        lane: str,
        request: int,
        *,
        repeated: bool,
        more: bool = False,
        size: int = CLAIM_MAX,
        reserve: tuple[int, int, int] | None = None,
    ) -> Call[Claimed | None]:
        """Claim jobs for up to ``want`` slots in the order of their priorities; fewer if their specs exceed
        ``CLAIM_BYTES``.

        ``more``: the worker could take more than ``want``. ``size``: the slots that it has in all.
        ``reserve``: the priority below which jobs are urgent, and how many slots the others may take, now and in all.
        """
        args: list[Argument] = [
            self.now, want, lease_ms, worker, lane, request, int(repeated), int(more), CLAIM_BYTES, size,
            *(reserve or ()),
        ]  # fmt: skip
        return Call("claim", args, self._read_claim, repeat=repeat_claim, short=not (self.limited or reserve))

    def _read_claim(self, reply: list[Any]) -> Claimed | None:
        if len(reply) == 1:
            # The queue has limits: claim again, with their keys. Or the first job is late: claim again after lapse.
            self.limited = True
            self.late |= reply[0] == b"late"
            return Claimed(b"", 0, [], [], [], [], limited_ms=0)
        return read_claimed(reply)

    def complete(self, jobs: list[Argument], counts: list[Argument]) -> Call[Settled]:
        """Move leased jobs to completed: groups id, token, result, retention ms. ``counts``: flat pairs for metrics."""
        # Jobs of one claim have the same token. Sending it once per group halves the number of arguments.
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
        # Jobs that were claimed while the queue had no limits have no places to give back.
        return Call("complete", args, read_settled, short=not self.limited)

    def reschedule(self, jobs: list[Argument], counts: Sequence[Argument] = ()) -> Call[list[bytes]]:
        """Move leased jobs to delayed, charged: groups id, token, attempt, delay ms, error record. Returns lost ids."""
        return Call("reschedule", [self.now, len(counts) // 2, *counts, *jobs], read_as_is)

    def fail(self, jobs: list[Argument], counts: Sequence[Argument] = ()) -> Call[Settled]:
        """Move leased jobs to failed: flat quintuples id, token, attempt, error record, retention ms."""
        return Call("fail", [self.now, len(counts) // 2, *counts, *jobs], read_settled)

    def release(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Move leased jobs back to the front of waiting, uncharged: flat pairs id, token. Returns lost ids."""
        return Call("release", [self.now, *jobs], read_as_is)

    def defer(self, jobs: list[Argument], first_ms: int, longest_ms: int, types: Argument) -> Call[list[bytes]]:
        """Move held jobs that cannot be run here to delayed, uncharged: groups id, token, type, ms. Returns lost ids.

        A job with a type is parked for so many ms. ``types`` is a JSON list of these types, which all workers hear.
        """
        return Call("defer", [self.now, first_ms, longest_ms, types, *jobs], read_as_is)

    def snooze(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Move leased jobs to delayed, uncharged: flat triples id, token, delay ms. Returns lost ids."""
        return Call("snooze", [self.now, *jobs], read_as_is)

    def throttle(self, jobs: list[Argument]) -> Call[list[list[bytes]]]:
        """Move leased jobs out of active, uncharged, and close what they name: flat groups id, token, ms, scope.

        ``scope`` is "job", "key" or "queue". Returns lost ids, and ids with the scope "key" that have no limit keys.
        """
        return Call("throttle", [self.now, *jobs], read_as_is)

    def recall(self, limit: int, types: Iterable[Argument]) -> Call[int]:
        """Move up to ``limit`` parked jobs of these types to waiting. Returns their number."""
        return Call("recall", [self.now, limit, *types], int)

    def renew(self, jobs: list[Argument], lease_ms: int) -> Call[list[bytes]]:
        """Extend leases from now: flat pairs id, token. Returns lost ids."""
        return Call("renew", [self.now, lease_ms, *jobs], read_as_is)

    def progress(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Store progress: flat triples id, token, JSON value. Returns lost ids."""
        return Call("progress", jobs, read_as_is)

    def charge(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Set what leased jobs really cost: flat triples id, token, lines "unit amount". Returns lost ids."""
        return Call("charge", [self.now, *jobs], read_as_is)

    def log(self, jobs: list[Argument]) -> Call[list[bytes]]:
        """Append log lines: groups id, token, number of earlier lines of the run, the same with these, lines.

        ``lines`` has one JSON object per line. Returns lost ids.
        """
        return Call("log", jobs, read_as_is)

    def reap(self, limit: int, lease_ms: int, sweeper: str, gap_ms: int, grace_ms: int) -> Call[Claimed | None]:
        """Claim jobs whose lease ran out, for the sweeper; fewer if their specs exceed ``CLAIM_BYTES``."""
        return Call("reap", [self.now, limit, lease_ms, sweeper, gap_ms, grace_ms, CLAIM_BYTES], read_claimed)

    def lapse(self, page: int, expired: bytes, missed: bytes) -> Call[list[Any]]:
        """Move jobs that did not start or end in time to failed, with one of these error records.

        Returns 1 if more jobs may be late, else 0, and the ids.
        """
        return Call("lapse", [self.now, self.request(), page, expired, missed, CLAIM_BYTES], read_lapsed)

    def trim(
        self,
        keep_completed: int,
        keep_failed: int,
        keep_for_ms: int,
        page: int,
        young_ms: int = YOUNG_MS,
        young: int = YOUNG,
    ) -> Call[int]:
        """Remove one page of finished jobs beyond the retention. Returns their number."""
        return Call("trim", [self.now, keep_completed, keep_failed, keep_for_ms, page, young_ms, young], int)

    def trim_expired(self, page: int) -> Call[int]:
        """Remove one page of jobs past their own retention. It needs no settings of the queue. Returns their number."""
        return self.trim(NO_BOUND, NO_BOUND, NO_BOUND, page)

    def expire(self, page: int) -> Call[int]:
        """Remove one page of expired deduplication keys, old recorded answers and old metrics. Returns the number."""
        return Call("expire", [self.now, page, MINUTES_KEPT], int)

    def rebase(self, page: int, bound: int = SEQUENCE_BOUND) -> Call[int]:
        """Give a page of waiting jobs low places again, if a sequence passed the bound. Returns 1 if more remain."""
        return Call("rebase", [page, bound], int)

    def heartbeat(self, worker: str, info: bytes) -> Call[int]:
        """Write the worker's row, or remove it if ``info`` is empty. Returns the number of workers."""
        return Call("heartbeat", [self.now, worker, info, FORGET_MS], int)

    def publish(self, publisher: str, rows: Sequence[Argument], *, started: bool) -> Call[list[bytes]]:
        """Publish types: flat pairs type, row. Returns triples type, publisher, row of other publishers' types.

        ``started``: the publisher has just started, so its rows come before those of others.
        """
        args: list[Argument] = [self.now, publisher, int(started), TYPES_MAX, COMPARED_MS, *rows]
        return Call("publish", args, read_as_is)

    def rule(self, layer: str, name: str, text: str, cursor: str | bytes = "", page: int = 250) -> Call[bytes]:
        """Write a rule of limits ("set" by an operator, or "declared" by code), '' to remove it. Returns a cursor for
        the next call, b"" at the end, or b"full"."""
        args: list[Argument] = [layer, name, text, self.rules_max, cursor, page, int(self.partition > 0)]
        return Call("rule", args, read_as_is)

    def group(self, name: str, row: str, cursor: str | bytes = "", page: int = 250) -> Call[bytes]:
        """Write the settings of a group ("weight paused most", with "=" for what stays), '' to remove them. Returns a
        cursor for the next call, b"" at the end, or b"full"."""
        return Call("group", [name, row, self.groups_max, cursor, page], read_as_is)

    def close(self, key: str, time: float, how: Literal["for", "longer", "until"] = "for") -> Call[bytes]:
        """Close a limit key or "queue" for so many ms, or until a time, or open it (0; see close.lua). Returns until
        when it was closed, or b""."""
        return Call("close", [self.now, key, how, time], read_as_is)

    def breaker(self, verb: str, type: str, text: str) -> Call[bytes]:
        """Declare, trip, reset or remove the breaker of a type, or take over its state (see breaker.lua). Returns its
        row, or b""."""
        return Call("breaker", [self.now, verb, type, text, self.breakers_max], read_as_is)

    def breakers(self) -> Call[list[Any]]:
        """All breakers, as breakers.lua returns them."""
        return Call("breakers", [self.now, LINES_COUNTED], read_as_is)

    def recount(self, page: int, cursor: str | bytes = "") -> Call[list[Any]]:
        """Compare one page of what limits count with the jobs. Returns the next cursor (b"" at the end), and how many
        differences were mended."""
        return Call("recount", [self.now, page, cursor], read_as_is)

    # -- operators -------------------------------------------------------------------------------------------------

    def request(self) -> str:
        """A new id for an operator's request. The answer is recorded under it, and a repetition returns it."""
        return token_hex(8)

    def pause(self) -> Call[list[str]]:
        """Stop claims. Returns ['running'], or [''] if the queue was already paused."""
        return Call("pause", [self.now, self.request()], read_states)

    def resume(self) -> Call[list[str]]:
        """Allow claims again. Returns ['paused'], or [''] if the queue was not paused."""
        return Call("resume", [self.now, self.request()], read_states)

    def kill(self, ids: Sequence[str], record: bytes, retention_ms: int | str = "") -> Call[list[str]]:
        """Move unfinished jobs to failed. Returns per id its earlier state or ''. ``retention_ms`` '': the queue's."""
        return Call("kill", [self.now, self.request(), record, retention_ms, *ids], read_states)

    def retry(self, ids: Sequence[str | bytes]) -> Call[list[str]]:
        """Move finished jobs to waiting. Returns per id its earlier state, '' or 'key <holder>'."""
        return Call("retry", [self.now, self.request(), *ids], read_states)

    def promote(self, ids: Sequence[str | bytes]) -> Call[list[str]]:
        """Move delayed jobs to waiting now. Returns per id 'delayed' or ''."""
        return Call("promote", [self.now, self.request(), *ids], read_states)

    def reprioritise(self, ids: Sequence[str], priority: int) -> Call[list[str]]:
        """Give jobs that have not started another priority. Returns per id its state, or ''."""
        return Call("reprioritise", [self.now, self.request(), priority, *ids], read_states)

    def remove(self, ids: Sequence[str | bytes]) -> Call[list[str]]:
        """Remove jobs that are not active. Returns per id its earlier state, or ''."""
        return Call("remove", [self.now, self.request(), *ids], read_states)

    def drop(self, *, force: bool) -> Call[list[int]]:
        """Remove the queue with all its keys. Returns how many jobs, living workers and schedules it had, and 1 if it
        was removed."""
        return Call("drop", [self.now, self.request(), ALIVE_MS, int(force)], read_numbers)


async def give_wake_back(store: Store) -> None:
    """Put the token back: it was taken by a worker that cannot use it."""
    await store.command(b"ZADD", store.keys["wake"], 0, b"t")
