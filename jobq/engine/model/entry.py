"""A new job in the form of enqueue.lua: its id, its spec, its options, and the fingerprint of its request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from jobq.engine.model.job import DELAY_MAX_MS, Spec
from jobq.engine.model.limits import keys_of
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.ids import IdMaker
    from jobq.engine.model.job import NewJob

IDEMPOTENCY_TTL_MS: Final = 24 * 3600 * 1000
_SEPARATOR: Final = "\x1f"
"""Separates the parts of an idempotency key. It is a control character, which none of the parts can contain."""

Entry = tuple[str, bytes, str, str]
"""Id, spec, options in the form of enqueue.lua, and fingerprint ('-' if the request has no idempotency key)."""

_encode = msgspec.json.Encoder().encode


def encode_entry(new: NewJob, ids: IdMaker, now: int) -> Entry:
    """``new`` must have been checked. ``now``: unix ms by the server's clock.

    :raises InvalidJob: it cannot be encoded as JSON, or ``run_at`` is too far ahead.
    """
    options = new.options
    if new.id is None:
        job_id = ids.new(now)
        at = 0 if ids.ms == now else now  # The id contains the time, which saves 19 bytes in every row.
    else:
        job_id, at = new.id, now
    spec = Spec(
        new.type,
        at,
        options.priority,
        options.delay,
        options.attempts,
        options.backoff,
        options.timeout,
        options.lifo,
        options.key,
        options.retention,
        options.run_at,
        options.slots,
        new.payload,
        options.metadata,
        new.schedule,
    )
    try:
        encoded = _encode(spec)
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidJob(f"the job cannot be encoded as JSON: {error}") from None
    delay: int | str = options.delay
    if options.run_at is not None:
        if options.run_at - now > DELAY_MAX_MS:
            raise InvalidJob("run_at is more than ten years ahead")
        delay = f"={options.run_at}"
    words, fingerprint = "", "-"
    keys = keys_of(options.limits, options.limits_by, new.payload) if options.limits or options.limits_by else []
    if options.breaker:
        # The name of no rule begins with an exclamation mark.
        keys.insert(0, f"!{new.type}")
    weight = "" if options.slots == 1 else str(options.slots)
    if options.priority or options.lifo or delay or options.key or new.idempotency_key or keys or weight:
        words = f"{options.priority} {int(options.lifo)} {delay}"
        # Keys of jobs and keys of requests are in one table. The first letter distinguishes them.
        if options.key:
            words += f"\n{-1 if options.key_ttl is None else options.key_ttl} - k:{options.key}"
        if new.idempotency_key:
            # Two requests are the same if everything but the time is equal.
            same = _encode(msgspec.structs.replace(spec, at=0)) + "\n".join(keys or ()).encode()
            fingerprint = hashlib.blake2b(same, digest_size=9).hexdigest()
            key = _SEPARATOR.join((*new.idempotency_scope, new.idempotency_key))
            words += f"\n{IDEMPOTENCY_TTL_MS} {fingerprint} i:{key}"
        if keys or weight:
            words += "\v" + "\n".join(keys or ())
        if weight:
            words += "\v" + weight
    return job_id, encoded, words, fingerprint
