"""Why a worker's last claim brought nothing, for its heartbeat and its debug log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobq.engine.log import get_logger
from jobq.engine.model.why import ReasonCode

if TYPE_CHECKING:
    from jobq.engine.store import Claimed, Store

log = get_logger("jobq.worker")

_REFUSED: Final = {
    b"paused": ReasonCode.QUEUE_PAUSED,
    b"closed": ReasonCode.QUEUE_CLOSED,
    b"slots": ReasonCode.SLOTS_BUSY,
}


class Idle:
    """What one source knows of the reason. ``code`` is '' if the last claim brought jobs.

    It needs no call of its own: an empty claim says whether the queue is paused or closed, and the calls before it
    said whether jobs are held or delayed.
    """

    __slots__ = ("_queue", "_store", "code", "until")

    def __init__(self, queue: str, store: Store) -> None:
        self._queue = queue
        self._store = store
        self.code: ReasonCode | str = ""
        self.until: int | None = None
        """When that ends, unix ms, if it is known."""

    def over(self) -> None:
        """The claim brought jobs."""
        self.code, self.until = "", None

    def saw(self, claimed: Claimed | None, moved: list[Any]) -> None:
        """The claim brought nothing. ``moved``: the answers of forward and admit before it; empty if they were not
        called."""
        code, until = self._reason(claimed, moved)
        if code and code != self.code:
            log.debug(f"A claim from queue {self._queue} brought nothing: {code}", queue=self._queue, code=str(code))
        if code:
            self.code, self.until = code, until

    def empty(self) -> None:
        """The queue has no jobs that may run, now or later, as was found without a claim."""
        if not self.code:
            self.code, self.until = ReasonCode.NO_JOBS, None

    def _reason(self, claimed: Claimed | None, moved: list[Any]) -> tuple[ReasonCode | str, int | None]:
        if claimed is not None:
            ms = claimed.limited_ms or 0
            until = claimed.now + ms if ms > 0 else None
            if claimed.token == b"limited":
                return (ReasonCode.RATE_SPENT if ms > 0 else ReasonCode.CONCURRENCY_FULL), until
            return _REFUSED.get(claimed.token, ""), until
        if not moved or any(not isinstance(answer, list) for answer in moved):
            return "", None
        _, due, held = moved[0]
        if held:
            return ReasonCode.ONLY_HELD, None
        return (ReasonCode.ONLY_DELAYED, self._store.now_ms() + due) if due >= 0 else (ReasonCode.NO_JOBS, None)
