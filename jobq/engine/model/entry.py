"""A new job in the form of enqueue.lua: its id, its spec, its options, and the fingerprint of its request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.costs import costs_of, weight_row
from jobq.engine.model.groups import group_of
from jobq.engine.model.job import DELAY_MAX_MS, Spec
from jobq.engine.model.limits import keys_of
from jobq.engine.model.unique import key_of, mode_of
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.ids import IdMaker
    from jobq.engine.model.job import NewJob, Options

IDEMPOTENCY_TTL_MS: Final = 24 * 3600 * 1000
_SEPARATOR: Final = "\x1f"
"""Separates the parts of an idempotency key. It is a control character, which none of the parts can contain."""

Entry = tuple[str, bytes, str, str, str]
"""Id, spec, options in the form of enqueue.lua, fingerprint ('-' if the request has no idempotency key), and uniqueness
in the form of enqueue_unique.lua ('' if neither the job nor its request has a key)."""

_encode = msgspec.json.Encoder().encode


def encode_entry(new: NewJob, ids: IdMaker, now: int) -> Entry:
    """``new`` must have been checked. ``now``: unix ms by the server's clock.

    :raises InvalidJob: it cannot be encoded as JSON, or ``run_at`` is too far ahead.
    """
    options = new.options
    unique = options.unique
    key = options.key if unique is None else key_of(unique, new.type, new.payload)
    first_delay = options.delay
    if unique is not None and not first_delay and options.run_at is None:
        first_delay = unique.delay or 0
    if new.id is None:
        job_id = ids.new(now)
        at = 0 if ids.ms == now else now  # The id contains the time, which saves 19 bytes in every row.
    else:
        job_id, at = new.id, now
    spec = Spec(
        new.type,
        at,
        options.priority,
        first_delay,
        options.attempts,
        options.backoff,
        options.timeout,
        options.lifo,
        key,
        options.retention,
        options.run_at,
        options.slots,
        None,
        None,
        new.payload,
        options.metadata,
        new.schedule,
    )
    times = ""
    if options.expires or options.deadline or options.expires_at or options.deadline_at:
        spec, times = _in_time(spec, options, now)
    try:
        encoded = _encode(spec)
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidJob(f"the job cannot be encoded as JSON: {error}") from None
    delay: int | str = first_delay
    if options.run_at is not None:
        if options.run_at - now > DELAY_MAX_MS:
            raise InvalidJob("run_at is more than ten years ahead")
        delay = f"={options.run_at}"
    words = uniqueness = ""
    fingerprint = "-"
    keys = keys_of(options.limits, options.limits_by, new.payload) if options.limits or options.limits_by else []
    if options.breaker:
        # The name of no rule begins with an exclamation mark.
        keys.insert(0, f"!{new.type}")
    group = group_of(options.group_by, new.payload) if options.group_by else options.group
    if group:
        keys.insert(0, f"@{group}")
    costs = options.costs
    if costs or options.costs_by:
        costs = costs_of(costs, options.costs_by, new.payload)
    weight = weight_row(options.slots, costs) if costs or options.slots != 1 else ""
    if options.priority or options.lifo or delay or keys or weight or times:
        words = f"{options.priority} {int(options.lifo)} {delay}"
        if keys or weight or times:
            words = "\v".join((words, "\n".join(keys), weight, times)).rstrip("\v")
    if key is not None or new.idempotency_key is not None:
        # Keys of jobs and keys of requests are in one table. The first letter distinguishes them.
        uniqueness = "" if key is None else f"{_rule_of(options)} {len(_encode(new.type)) + 8} k:{key}"
        if new.idempotency_key is not None:
            # Two requests are the same if everything but the time is equal.
            within = f"{options.expires} {options.expires_at} {options.deadline} {options.deadline_at}" if times else ""
            words_of = "\n".join((*(keys or ()), uniqueness, weight, within))
            same = _encode(msgspec.structs.replace(spec, at=0, expires_at=None, deadline_at=None)) + words_of.encode()
            fingerprint = hashlib.blake2b(same, digest_size=9).hexdigest()
            request = _SEPARATOR.join((*new.idempotency_scope, new.idempotency_key))
            uniqueness += f"\n{IDEMPOTENCY_TTL_MS} {fingerprint} i:{request}"
    return job_id, encoded, words, fingerprint, uniqueness


def _in_time(spec: Spec, options: Options, now: int) -> tuple[Spec, str]:
    """The spec of a job with a time by which it must start or end, and these times in the form of enqueue.lua."""
    start_by = options.expires_at if options.expires is None else now + options.expires
    end_by = options.deadline_at if options.deadline is None else now + options.deadline
    words = f"{'-' if start_by is None else start_by} {'-' if end_by is None else end_by}"
    return msgspec.structs.replace(spec, expires_at=start_by, deadline_at=end_by), words


def _rule_of(options: Options) -> str:
    """While what the key is held, and what happens then, in the form of enqueue_unique.lua."""
    unique = options.unique
    if unique is None:
        return "unfinished 0 return -1 -1" if options.key_ttl is None else f"enqueued {options.key_ttl} return -1 -1"
    delay = -1 if unique.delay is None else unique.delay
    wait = -1 if unique.max_wait is None else unique.max_wait
    return f"{mode_of(unique)} {unique.for_ or 0} {unique.on} {delay} {wait}"
