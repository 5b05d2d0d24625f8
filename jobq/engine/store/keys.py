"""Makes all keys of a queue. They share the hash tag ``{NAME}``, so a queue is in one cluster slot."""

from __future__ import annotations

import re
from typing import Final

from jobq.errors import InvalidJob

LAYOUT: Final = 1
"""Version of the data model below, stored in ``meta``. A program refuses to use a newer one."""

COLUMNS: Final[dict[str, str]] = {
    "waiting": "zset: id -> priority * 2^42 + 2^41 + sequence; with aging: priority * its us + 2^41 + 2^42 + unix us",
    "delayed": "zset: id -> due, unix ms",
    "active": "zset: id -> lease expiry, unix ms",
    "completed": "zset: id -> finished, unix ms",
    "failed": "zset: id -> finished, unix ms",
    "blocked": "zset: id that waits for the end of another job with its key -> not before, unix ms",
    "held": "zset: id -> its place in waiting, once there is room under its limits",
    "jobs": "hash: id -> spec, JSON; only an enqueue with its key changes it, and not while the job runs",
    "leases": "hash: id -> 'fence worker', only while the job is active",
    "priorities": "hash: id -> priority, with L for LIFO, F to go to the front when it is due; not for 0 and FIFO",
    "attempts": "hash: id -> runs charged; since when it can run (unix ms), if it was put back; snoozes; rate limits",
    "errors": "hash: id -> error records, JSON, one a line, bounded",
    "results": "hash: id -> result record, JSON",
    "progress": "hash: id -> last progress, JSON",
    "logs": "hash: id -> 'fence number' (lines received from that run), then the lines, JSON, bounded",
    "unserved": "hash: id -> how often it was handed back unrun, for how many ms it was delayed, its type if parked",
    "parked": "zset: type NUL id of delayed jobs whose type a worker did not know, with score 0",
    "replaced": "hash: id -> SHA-1 of the spec that it was enqueued with, if another enqueue has changed it",
    "keys": "hash: id -> its deduplication keys, one a line; behind 'queued', 'running' or '' (own ttl) and a tab",
    "unique": "hash: deduplication key -> 'id fingerprint', then due at the latest or '-', and another unfinished id",
    "unique_until": "zset: deduplication key -> expiry, unix ms; only keys with a time of their own",
    "running": "zset: 'key NUL id' of jobs that ran with a key, scores 0; only if a key is held while running",
    "expires": "zset: finished id -> removal, unix ms; only jobs with a retention of their own",
    "start_by": "zset: id -> by when it must have started, unix ms; negative once it ran when that time came",
    "end_by": "zset: id -> by when it must have ended, unix ms; negative once it ran when that time came",
    "reruns": "hash: id -> the last jobs that were enqueued to run it again, newest first",
    "limits": "hash: id -> '@group' if it has one, then limit keys, one a line; a key is 'rule' or 'rule:value'",
    "weights": "hash: id -> its slots, then lines 'unit cost' with the real cost of the run; if it has any",
    "held_by": "zset: 'line NUL place NUL id' of held jobs, scores 0; a line is the row in limits",
    "admitted": "zset: 'key NUL id' of waiting and active jobs that count under the key, scores 0; with NUL n per slot",
    "unspent": "zset: 'key NUL id' of waiting jobs that take a token of the key when they start, scores 0",
    "spent": "zset: 'key NUL band' -> theoretical arrival time of GCRA, unix ms",
    "debts": "hash: 'key NUL band' -> when spent was written (unix ms), and the interval then; only with a unit",
    "undecided": "zset: held id that is due for the first time under a rule with an action -> its place",
    "seats": "zset: 'key NUL id' of held jobs that have room under such a rule, scores 0; with NUL n per slot",
    "openings": "zset: limit key that may have room, scores -inf",
    "reopens": "zset: limit key with held jobs -> when its next token is free, unix ms",
    "closed": "zset: limit key -> until when it is closed, unix ms; what a handler or an operator closed for a time",
    "breakers": "hash: type -> its circuit breaker: rate, runs, ms, open until, since, outcomes of the last runs",
    "arrivals": "zset: line that got a job -> its place; admit looks at it next",
    "lines": "hash: '=line' -> 'o' or 'f' and its member in open_lines or full_lines; '@group' -> its member in turns",
    "open_lines": "zset: 'group NUL place NUL line' of lines that may have room under all keys, scores 0",
    "full_lines": "zset: 'key NUL turn NUL place NUL line' of lines that wait for a key, scores 0",
    "turns": "zset: 'priority, start tag and place NUL group' of groups with open lines, scores 0",
    "finish": "zset: group without open lines -> the start tag of its next job, if that is later than virtual time",
    "billing": "zset: 'id NUL clock NUL group' of runs that groups pay for -> paid until, unix ms; only with charge",
    "groups": "hash: group -> what operators set: weight, paused (0 or 1), most held jobs (- for no bound)",
    "rules": "hash: rule -> two lines, an operator's text and the one that code declares",
    "schedules": "zset: schedule -> when it is due, unix ms; not those that are paused or have ended",
    "schedule_rows": "hash: schedule -> four lines: version and slot, state, an operator's definition, that of code",
    "schedule_failures": "hash: schedule -> its last jobs that ended in failed",
    "schedule_seen": "zset: schedule -> when code declared it last, unix ms; '': when any program did",
    "webhooks": "hash: webhook -> its address, events and secrets, JSON",
    "webhook_facts": "hash: follower -> fence, until when, and who follows the events for webhooks; cursor -> how far; "
    "failures:<webhook> -> failed attempts since the last success; disabled:<webhook> -> why",
    "meta": "hash: layout, fifo, lifo, fence, paused, swept, reap_from, longest_lease, rebase, rule, limited, "
    "virtual, planned, closed, scheduled_at, clock, over, running, moved, later, arrived, aging, aged, charge, "
    "partitions, changes, settled, balancer, balanced, whole, events",
    "wake": "zset: at most one token, which means that there is work. Idle workers block on it",
    "claims": "hash: worker:lane -> its last claim, so that a repeated one gets the same answer",
    "requests": "zset: id of an operator's request -> when it was executed, unix ms; for two minutes",
    "answers": "hash: id of an operator's request -> its answer, so that a repeated one gets the same",
    "removed": "zset: id of a removed job -> when, unix ms; for two minutes, the newest 10,000",
    "events": "stream, capped: completed | failed | killed | expired | retried | removed -> ids (removed also types -> "
    "one a line); with meta events also started -> ids, and progress -> id, value -> JSON",
    "workers": "zset: worker -> last heartbeat, unix ms",
    "workers_info": "hash: worker -> what it is, JSON",
    "types": "hash: type -> what workers and servers say of it: when, who, options and schema; one a line",
    "types_seen": "zset: type -> when somebody said something of it last, unix ms",
    "metrics": "hash: totals, m:<minute>:<what> and s:<five minutes>:<what>:<type> -> count",
    "history": "hash: type -> what was counted in five minutes, hours, quarter days and ever, one a line; '' for all",
    "control": "channel: 'kill <id> <token>', 'unserved [<due in ms>, <parked types>]', 'schedules' or 'partitions'; "
    "for the workers",
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_queue_name(name: str) -> str:
    """Check and return a queue's name.

    :raises InvalidJob: it holds anything but letters, digits and ``._-``, or is longer than 128.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(
            f"queue name {name!r:.80}: 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return name


def queue_keys(prefix: str, name: str, partition: int = 0) -> dict[str, bytes]:
    """Column name -> full key. The other partitions of a queue have hash tags of their own, so each is in a slot of its
    own. No user's queue can have such a name, because it contains a tilde."""
    tag = f"{name}~{partition}" if partition else name
    return {column: f"{prefix}:{{{tag}}}:{column}".encode() for column in COLUMNS}


def registry_key(prefix: str) -> bytes:
    """Set of all queue names under the prefix. One key for all queues: no script touches it."""
    return f"{prefix}:queues".encode()
