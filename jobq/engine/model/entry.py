"""A new job in the form of enqueue.lua: its id, its spec, its options, and the fingerprint of its request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.costs import costs_of, weight_row
from jobq.engine.model.groups import name_of
from jobq.engine.model.job import DELAY_MAX_MS, PLAIN, Spec
from jobq.engine.model.limits import keys_of
from jobq.engine.model.unique import key_of, mode_of
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.model.ids import IdMaker
    from jobq.engine.model.job import NewJob, Options

IDEMPOTENCY_TTL_MS: Final = 24 * 3600 * 1000
_SEPARATOR: Final = "\x1f"
"""Separates the parts of an idempotency key. It is a control character, which none of the parts can contain."""

Entry = tuple[str, bytes, str, str, str, str | None]
"""Id, spec, options in the form of enqueue.lua, fingerprint ('-' if the request has no idempotency key), uniqueness in
the form of enqueue_unique.lua ('' if neither the job nor its request has a key), and ``partition_by``."""

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
    run_at = options.run_at
    if new.offset:
        first_delay, run_at = _put_off(new, first_delay)
    if new.id is None:
        job_id = ids.new(now)
        at = 0 if ids.ms == now else now  # The id contains the time, which saves 19 bytes in every row.
    else:
        job_id, at = new.id, now
    partition_by = name_of(options.partition_from, new.payload) if options.partition_from else options.partition_by
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
        run_at,
        options.slots,
        None,
        None,
        new.rerun_of,
        partition_by,
        new.payload,
        options.version,
        options.metadata,
        new.schedule,
        new.trace or None,
    )
    life = ""
    if options.expires or options.deadline or options.expires_at or options.deadline_at or new.rerun_of:
        spec, life = _with_life(spec, options, now)
    try:
        encoded = _encode(spec)
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidJob(f"the job cannot be encoded as JSON: {error}") from None
    delay: int | str = first_delay
    if run_at is not None:
        if run_at - now > DELAY_MAX_MS:
            raise InvalidJob("run_at is more than ten years ahead")
        delay = f"={run_at}"
    options_row = uniqueness = ""
    fingerprint = "-"
    keys = keys_of(options.limits, options.limits_by, new.payload) if options.limits or options.limits_by else []
    if options.breaker:
        # The name of no rule begins with an exclamation mark.
        keys.insert(0, f"!{new.type}")
    group = name_of(options.group_by, new.payload) if options.group_by else options.group
    if group:
        keys.insert(0, f"@{group}")
    costs = costs_of(options.costs, options.costs_by, new.payload) if options.costs or options.costs_by else {}
    weight = weight_row(options.slots, costs) if costs or options.slots != 1 else ""
    if options.priority or options.lifo or delay or keys or weight or life:
        options_row = f"{options.priority} {int(options.lifo)} {delay}"
        if keys or weight or life:
            options_row = "\v".join((options_row, "\n".join(keys), weight, life)).rstrip("\v")
    if key is not None or new.idempotency_key is not None:
        # Keys of jobs and keys of requests are in one table. The first letter distinguishes them.
        uniqueness = "" if key is None else f"{_rule_of(options)} {len(_encode(new.type)) + 8} k:{key}"
        if new.idempotency_key is not None:
            fingerprint = _fingerprint(spec, options, keys, uniqueness, weight)
            request = _SEPARATOR.join((*new.idempotency_scope, new.idempotency_key))
            uniqueness += f"\n{IDEMPOTENCY_TTL_MS} {fingerprint} i:{request}"
    return job_id, encoded, options_row, fingerprint, uniqueness, partition_by


class EntryMaker:
    """Makes entries with the ids of one maker. The jobs must have been checked.

    Most jobs have the type and the options of the job before them. Their specs differ in the payload and the time
    alone, so the rest of the spec is encoded once, when the second such job comes.
    """

    def __init__(self, ids: IdMaker) -> None:
        self.ids = ids
        self._options: Options | None = None
        self._type = ""
        self._is_common: bool | None = None
        """Whether the next four attributes make the entry of a job with these options. None: not found out yet."""
        self._start = self._middle = self._end = b""
        """The encoded spec: up to its time, then up to its payload, then the rest."""
        self._options_row = ""

    def make(self, new: NewJob, now: int) -> Entry:
        """The entry of a job. ``now``: unix ms by the server's clock.

        :raises InvalidJob: it cannot be encoded as JSON, or ``run_at`` is too far ahead.
        """
        if new.options is not self._options or new.type != self._type:
            self._options, self._type, self._is_common = new.options, new.type, None
        elif self._is_common is None:
            self._is_common = self._learn(new.options)
        if (
            self._is_common
            and new.id is None
            and new.idempotency_key is None
            and new.schedule is None
            and not new.offset
            and new.rerun_of is None
            and not new.trace
        ):
            job_id = self.ids.new(now)
            start = self._start if self.ids.ms == now else b'%b,"at":%d' % (self._start, now)
            return job_id, b"".join((start, self._middle, new.payload, self._end)), self._options_row, "-", "", None
        return encode_entry(new, self.ids, now)

    def _learn(self, options: Options) -> bool:
        """Encode what all jobs with these options share. False if they differ in more than the payload and the time."""
        own = {name: getattr(options, name) for name in _IN_THE_SPEC_ALONE}
        if options != msgspec.structs.replace(PLAIN, **own):
            return False
        try:
            start = b'{"type":' + _encode(self._type)
            spec = _encode(Spec(self._type, payload=_HOLE, **own))
        except (ValueError, UnicodeEncodeError):
            return False  # encode_entry refuses it, and says why
        self._start = start
        self._middle, self._end = spec[len(start) :].split(_HOLE_BYTES)
        plain = not (options.priority or options.lifo or options.delay)
        self._options_row = "" if plain else f"{options.priority} {int(options.lifo)} {options.delay}"
        return True


_IN_THE_SPEC_ALONE: Final = ("priority", "delay", "attempts", "backoff", "timeout", "lifo", "retention", "version")
"""Options that no other part of an entry needs. Its row of options has the priority, the delay and ``lifo`` as well."""
_HOLE_BYTES: Final = b"\x00"
"""No JSON contains it."""
_HOLE: Final = msgspec.Raw(_HOLE_BYTES)


def _fingerprint(spec: Spec, options: Options, keys: list[str], uniqueness: str, weight: str) -> str:
    """Two requests are the same if everything but the time is equal."""
    within = (options.expires, options.expires_at, options.deadline, options.deadline_at)
    rest = "\n".join((*keys, uniqueness, weight, *(str(time) for time in within if time is not None)))
    same = _encode(msgspec.structs.replace(spec, at=0, expires_at=None, deadline_at=None, trace=None)) + rest.encode()
    return hashlib.blake2b(same, digest_size=9).hexdigest()


def spread_out(news: Sequence[NewJob], ms: int) -> list[NewJob]:
    """The jobs, with due times that are spread evenly over ``ms``, in order. The first one is not put off."""
    return [msgspec.structs.replace(new, offset=ms * place // len(news)) for place, new in enumerate(news)]


def _put_off(new: NewJob, delay: int) -> tuple[int, int | None]:
    """The delay and the point in time of a job in a bulk that is spread over a time.

    :raises InvalidJob: it would be too late then.
    """
    options = new.options
    for name in ("expires", "deadline"):
        within = getattr(options, name)
        if within is not None and delay + new.offset >= within:
            raise InvalidJob(
                f"{name} is {within / 1000:g} s and the spread puts a job off by {new.offset / 1000:g} s, so it could"
                f" never start: {name} counts from the enqueue"
            )
    if options.run_at is not None:
        return delay, options.run_at + new.offset
    if delay + new.offset > DELAY_MAX_MS:
        raise InvalidJob("the delay and the spread put the job off by more than ten years")
    return delay + new.offset, None


def _with_life(spec: Spec, options: Options, now: int) -> tuple[Spec, str]:
    """The spec of a job with a time by which it must start or end, or of a rerun; and the same in the form of
    enqueue.lua."""
    start_by = options.expires_at if options.expires is None else now + options.expires
    end_by = options.deadline_at if options.deadline is None else now + options.deadline
    life = f"{'-' if start_by is None else start_by} {'-' if end_by is None else end_by}"
    if spec.rerun_of is not None:
        life += f" {spec.rerun_of}"
    return msgspec.structs.replace(spec, expires_at=start_by, deadline_at=end_by), life


def _rule_of(options: Options) -> str:
    """While what the key is held, and what happens then, in the form of enqueue_unique.lua."""
    unique = options.unique
    if unique is None:
        return "unfinished 0 return -1 -1" if options.key_ttl is None else f"enqueued {options.key_ttl} return -1 -1"
    delay = -1 if unique.delay is None else unique.delay
    wait = -1 if unique.max_wait is None else unique.max_wait
    return f"{mode_of(unique)} {unique.for_ or 0} {unique.on} {delay} {wait}"
