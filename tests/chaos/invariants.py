"""Invariants of a queue that hold at every moment. They are checked over its whole keyspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobq.engine.store.keys import COLUMNS
from jobq.engine.store.store import TYPES_MAX
from tests.columns import dump

if TYPE_CHECKING:
    from jobq.engine.store import Store

SETS = ("waiting", "delayed", "active", "completed", "failed", "blocked", "held")
PER_JOB = ("priorities", "attempts", "errors", "results", "progress", "logs", "unserved", "keys", "limits", "weights")
META = {"layout", "fifo", "lifo", "fence", "paused", "swept", "reap_from", "longest_lease", "rebase", "rule", "limited",
        "virtual", "planned", "closed", "clock", "scheduled_at", "over", "running", "moved", "later",
         "arrived", "aging", "aged", "charge", "balancer", "balanced", "whole", "events",
         "partitions", "changes", "settled"}  # fmt: skip
EVENTS_MOST = 1200
"""The stream is capped at about 1000 entries. Redis removes whole nodes of 100."""


async def broken(store: Store, *, alone: bool = False) -> list[str]:
    """The broken invariants; an empty list means that all hold. ``alone``: there is no other queue in this database."""
    state = await dump(store, foreign=alone)
    return broken_in(state, set(state.get("not a column", [])) - {f"{store.prefix}:queues"})


def broken_in(state: dict[str, Any], strangers: set[str]) -> list[str]:
    """As ``broken``, for a dump."""
    wrong: list[str] = []

    def check(good: bool, what: str, which: Any = "") -> None:
        if not good:
            wrong.append(f"{what}: {sorted(which)[:5] if isinstance(which, set) else which}")

    column = {name: state.get(name, {}) for name in COLUMNS}
    jobs = set(column["jobs"])
    places: dict[str, list[str]] = {}
    for name in SETS:
        for job_id in column[name]:
            places.setdefault(job_id, []).append(name)
    twice = {f"{job_id} in {names}" for job_id, names in places.items() if len(names) > 1}
    check(not twice, "jobs in two sets", twice)
    check(jobs == set(places), "rows without a set, or sets without a row", jobs ^ set(places))
    check(set(column["active"]) == set(column["leases"]), "active without lease, or lease without active",
          set(column["active"]) ^ set(column["leases"]))  # fmt: skip
    for name in PER_JOB:
        check(set(column[name]) <= jobs, f"{name} of removed jobs", set(column[name]) - jobs)
    parked = {member.rpartition("\0")[2] for member in column["parked"]}
    check(parked <= set(column["delayed"]), "parked jobs that are not delayed", parked - set(column["delayed"]))
    finished = set(column["completed"]) | set(column["failed"])
    check(set(column["expires"]) <= finished, "expiry of unfinished jobs", set(column["expires"]) - finished)
    check(set(column["unique_until"]) <= set(column["unique"]), "times of unknown keys",
          set(column["unique_until"]) - set(column["unique"]))  # fmt: skip
    orphans = {
        key
        for key, value in column["unique"].items()
        if value.split(" ")[0] not in jobs and (value.endswith(" -") or key not in column["unique_until"])
    }
    check(not orphans, "deduplication keys of removed jobs", orphans)
    counting = set(column["waiting"]) | set(column["active"])
    taken: set[str] = set()
    for job_id in counting:
        slots = range(2, 1 + int(column["weights"].get(job_id, "1").split("\n")[0]))
        for key in filter(None, column["limits"].get(job_id, "").split("\n")):
            taken |= {f"{key}\0{job_id}", *(f"{key}\0{job_id}\0{n}" for n in slots)}
        if job_id in column["active"]:
            taken |= {f"queue\0{job_id}\0{n}" for n in slots}
    check(set(column["admitted"]) == taken, "places under limits that are counted wrongly",
          set(column["admitted"]) ^ taken)  # fmt: skip
    early = {place for place in taken if place.split("\0")[1] in column["waiting"]}
    check(set(column["unspent"]) <= early, "tokens of jobs that do not wait", set(column["unspent"]) - early)
    tripped = {f"!{name}" for name, row in column["breakers"].items() if row.split(" ")[3] != "0"}
    shut = {key for key in column["closed"] if key.startswith("!")}
    check(shut == tripped, "breakers that are closed in one place only", shut ^ tripped)
    held = sorted(member.split("\0")[2] for member in column["held_by"])
    check(held == sorted(column["held"]), "held jobs in no line, or in several", held)
    spots = {name[1:]: spot for name, spot in column["lines"].items() if name.startswith("=")}
    lost = {member.split("\0")[0] for member in column["held_by"]} - set(spots) - set(column["arrivals"])
    check(not lost, "lines of held jobs that nobody looks at", lost)
    stands = {f"o{member}" for member in column["open_lines"]} | {f"f{member}" for member in column["full_lines"]}
    check(set(spots.values()) == stands, "lines that stand elsewhere", set(spots.values()) ^ stands)
    waits = {member.split("\0")[0] for member in column["open_lines"]}
    turns = {member.split("\0")[1] for member in column["turns"]}
    check(waits <= turns, "groups without a turn", waits - turns)
    fence = float(column["meta"].get("fence", 0))
    ahead = {token for token in column["leases"].values() if float(token.split(" ")[0]) > fence}
    check(not ahead, "fences ahead of the queue's", ahead)
    check(set(column["meta"]) <= META, "unknown facts in meta", set(column["meta"]) - META)
    check(set(column["requests"]) == set(column["answers"]), "requests and answers that disagree",
          set(column["requests"]) ^ set(column["answers"]))  # fmt: skip
    for name in ("schedules", "schedule_failures"):
        check(set(column[name]) <= set(column["schedule_rows"]), f"{name} without a row",
              set(column[name]) - set(column["schedule_rows"]))  # fmt: skip
    half = {name for name, row in column["schedule_rows"].items() if row.count("\n") != 3}
    check(not half, "rows of schedules that were written halfway", half)
    check(len(column["wake"]) <= 1, "wake tokens", set(column["wake"]))
    check(set(column["workers"]) == set(column["workers_info"]), "worker rows that disagree",
          set(column["workers"]) ^ set(column["workers_info"]))  # fmt: skip
    check(set(column["types"]) == set(column["types_seen"]), "types that disagree",
          set(column["types"]) ^ set(column["types_seen"]))  # fmt: skip
    check(len(column["types"]) <= TYPES_MAX, "published types", len(column["types"]))
    check(len(state.get("events", [])) <= EVENTS_MOST, "events", len(state.get("events", [])))
    check(not strangers, "keys that are no column", strangers)
    return wrong
