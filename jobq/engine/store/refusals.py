"""What an error of Redis or redis-py means for jobq."""

from __future__ import annotations

from redis import exceptions

from jobq.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable
from jobq.redact import redact

_TRANSIENT = (
    "BUSY ",
    "LOADING ",
    "MASTERDOWN ",
    "CLUSTERDOWN ",
    "TRYAGAIN ",
    "MOVED ",
    "ASK ",
    "READONLY ",
    "MISCONF ",
    "UNBLOCKED ",
)
_REFUSED = ("NOAUTH ", "NOPERM ", "WRONGPASS ")


def translate(error: Exception) -> StoreError:
    """Translate errors of Redis and redis-py into jobq's errors."""
    text = redact(str(error)) or type(error).__name__
    if text.startswith("OOM "):
        return StoreFull("Redis is at maxmemory and accepts no new jobs; free memory or raise maxmemory")
    refusals = exceptions.AuthenticationError | exceptions.NoPermissionError
    # redis-py raises a refused login as a ConnectionError. Its cause is the refusal.
    if isinstance(error, refusals) or isinstance(error.__cause__, refusals) or text.startswith(_REFUSED):
        return StoreRefused(f"Redis refuses this user: {text}")
    if text.startswith(_TRANSIENT):
        return StoreUnavailable(f"Redis cannot write now: {text}")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError | TimeoutError | EOFError):
        return StoreUnavailable(f"no answer from Redis: {text}")
    return StoreError(f"Redis: {text}")
