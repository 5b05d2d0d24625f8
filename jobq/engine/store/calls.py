"""Calls of scripts: the arguments of one script, and the function that reads its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.engine.store.packing import Argument

T = TypeVar("T")


class Call(Generic[T]):
    """One script with its arguments. ``read`` turns the reply into the method's return value.

    ``repeat``: changes the arguments for a repetition, if they differ. ``again``: the call was sent before, so Redis
    may have executed it already. ``short``: send only the keys before the semicolon of the script's header.
    """

    __slots__ = ("again", "args", "keys", "read", "repeat", "script", "short")

    def __init__(
        self,
        script: str,
        args: list[Argument],
        read: Callable[[Any], T],
        keys: tuple[bytes, ...] | None = None,
        repeat: Callable[[Call[T]], None] | None = None,
        *,
        short: bool = False,
    ) -> None:
        self.script = script
        self.args = args
        self.read = read
        self.keys = keys
        self.repeat = repeat
        self.short = short
        self.again = False

    def send_again(self) -> None:
        """Mark the call as a repetition. Its reply was lost, so Redis may have executed it already."""
        self.again = True
        if self.repeat is not None:
            self.repeat(self)


def repeat_claim(call: Call[Any]) -> None:
    """Set the flag ``repeated`` of claim.lua."""
    call.args[6] = 1


def repeat_enqueue(call: Call[Any]) -> None:
    """Set the flag ``repeated`` of enqueue.lua. A call that was sent without options gets empty ones, and all keys."""
    if not call.short:
        call.args[1] = 1
        return
    call.short = False
    now, *rest = call.args
    call.args = [now, 1]
    for job_id, spec in zip(rest[::2], rest[1::2], strict=True):
        call.args += (job_id, spec, b"")


def repeat_unique(call: Call[Any]) -> None:
    """Set the flag ``repeated`` of enqueue_unique.lua."""
    call.args[1] = 1


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """Jobs of a claim or a reap. The holder of ``token`` ("fence worker") holds the lease; ``now`` is server time, ms.
    Without ids, ``token`` is why nothing could be claimed (see claim.lua).

    ``charged`` counts the attempts charged before this run; ``holders`` (reap only) are the tokens that ran out.
    ``limited_ms``: the limits of the queue allowed fewer jobs than were asked for. The next one is allowed in so many
    ms, or when a job ends (-1). So it is when the next job does not fit into the free slots. None: they did not.
    ``weights`` are the jobs' rows in that column; empty if no job has any.
    ``urgent``: so many of the jobs, the first ones, may take slots that the worker reserves.
    """

    token: bytes
    now: int
    ids: list[bytes]
    specs: list[bytes | None]
    charged: list[bytes | None]
    holders: list[bytes | None]
    limited_ms: int | None = None
    weights: list[bytes | None] = []
    urgent: int = 0


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The size of the finished set now, and the ids of jobs whose lease the worker had lost."""

    standing: int
    lost: list[bytes]


def read_claimed(reply: list[Any]) -> Claimed | None:
    """Returns None when no job is waiting."""
    if not reply:
        return None
    token, now, ids, specs, charged, *rest = reply
    if rest and not isinstance(rest[0], list):
        limited_ms = rest[0] if isinstance(rest[0], int) else None
        return Claimed(token, now, ids, specs, charged, [], limited_ms, *rest[1:])
    return Claimed(token, now, ids, specs, charged, *rest or [[]])


def read_settled(reply: list[Any]) -> Settled:
    """The first element is a count, the rest are ids."""
    return Settled(reply[0], reply[1:])


def read_as_is(reply: Any) -> Any:
    """Return the reply unchanged."""
    return reply


def read_numbers(reply: list[Any]) -> list[int]:
    """Numbers. A recorded answer has them as text."""
    return [int(word) for word in reply]


def read_lapsed(reply: list[Any]) -> list[Any]:
    """A number and ids. A recorded answer has the number as text."""
    return [int(reply[0]), *reply[1:]]


def read_states(reply: list[bytes]) -> list[str]:
    """One word per id."""
    return [word.decode() for word in reply]
