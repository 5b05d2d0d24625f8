"""What operators do to many jobs of an open queue at once, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jobq.engine.model.job import AttemptError, Options, Seconds, State
from jobq.engine.model.options import check
from jobq.engine.model.outcome import KILLED
from jobq.engine.model.rows import job_row
from jobq.engine.model.unreadable import as_text
from jobq.engine.queue.pages import CALL
from jobq.engine.queue.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobq.engine.store import Call

_encode = msgspec.json.Encoder().encode


class BulkVerbs(Verbs):
    """The operators' methods for many jobs of a queue."""

    async def retry_all(
        self,
        state: State = State.FAILED,
        *,
        group: str | None = None,
        older_than: Seconds | None = None,
        limit: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Retry the finished jobs of a state, oldest first, in pages. ``progress`` is called with the number so far.

        Jobs that finish while it runs are left alone. Returns how many jobs went back to waiting.

        :raises InvalidQuery: the state is not failed or completed.
        """
        calls = _in_calls(self.store.retry)
        return await self._sessions.here.pager.sweep(state, "retry", calls, older_than, limit, progress, group)

    async def remove_all(
        self,
        state: State,
        *,
        group: str | None = None,
        older_than: Seconds | None = None,
        limit: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Remove the jobs of a state, oldest first, in pages. ``progress`` is called with the number so far.

        ``older_than`` (seconds): only jobs that finished, or were due, at least so long ago. Returns their number.

        :raises InvalidQuery: the state is active, or an age is given for waiting.
        """
        calls = _in_calls(self.store.remove)
        return await self._sessions.here.pager.sweep(state, "remove", calls, older_than, limit, progress, group)

    async def promote_all(
        self,
        state: State = State.DELAYED,
        *,
        group: str | None = None,
        limit: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Send the delayed jobs, or those of a group, to waiting now, in pages. Returns how many were moved.

        :raises InvalidQuery: the state is not delayed.
        """
        calls = _in_calls(self.store.promote)
        return await self._sessions.here.pager.sweep(state, "promote", calls, None, limit, progress, group)

    async def reprioritise_all(
        self,
        state: State,
        priority: int,
        *,
        group: str | None = None,
        limit: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Give the jobs of a state, or those of a group, another priority, in pages. They keep their order in time.

        Returns how many jobs had another priority before.

        :raises InvalidQuery: the state is active, completed or failed.
        :raises InvalidJob: the priority is out of range.
        """
        check(Options(priority=priority))
        store = self.store

        async def calls(ids: list[bytes]) -> list[Call[list[str]]]:
            # A job that gets a later place is read again, and must not be counted again.
            found = zip(ids, await store.priorities(ids), strict=True)
            asked = [as_text(job_id) for job_id, before in found if before != priority]
            return [store.reprioritise(asked[at : at + CALL], priority) for at in range(0, len(asked), CALL)]

        return await self._sessions.here.pager.sweep(state, "reprioritise", calls, None, limit, progress, group)

    async def kill_all(
        self,
        state: State,
        *,
        group: str | None = None,
        limit: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Kill the unfinished jobs of a state, in pages. ``progress`` is called with the number so far.

        ``group``: only jobs of this group. Returns how many jobs were killed.

        :raises InvalidQuery: the state is failed or completed.
        """
        store = self.store

        async def calls(ids: list[bytes]) -> list[Call[list[str]]]:
            record = _encode(AttemptError(attempt=0, at=store.now_ms(), type=KILLED, message="killed by an operator"))
            kept: dict[int | str, list[str]] = {}
            left = [as_text(job_id) for job_id in ids]
            while left:
                asked = left[:CALL]
                # Large rows make the reply shorter.
                rows = await store.do(store.rows(asked, brief=True))
                for job_id, row in zip(asked, rows, strict=False):
                    retention = job_row(self.name, job_id, row).retention if row else None
                    kept.setdefault("" if retention is None else retention, []).append(job_id)
                left = left[len(rows) :]
            return [
                store.kill(some[at : at + CALL], record, retention)
                for retention, some in kept.items()
                for at in range(0, len(some), CALL)
            ]

        return await self._sessions.here.pager.sweep(state, "kill", calls, None, limit, progress, group)


def _in_calls(
    verb: Callable[[Sequence[str | bytes]], Call[list[str]]],
) -> Callable[[list[bytes]], Awaitable[list[Call[list[str]]]]]:
    async def calls(ids: list[bytes]) -> list[Call[list[str]]]:
        return [verb(ids[at : at + CALL]) for at in range(0, len(ids), CALL)]

    return calls
