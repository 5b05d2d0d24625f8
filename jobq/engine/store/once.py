"""Callers that come while the same work is under way share it: hundreds of queues may open at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Once:
    """The works of one connection that are under way."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def do(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work, which a caller that is cancelled does not take from the others.

        :raises Exception: what the work raised, for each caller.
        """
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = asyncio.get_running_loop().create_task(work(), name=f"jobq-{what}")

            def ended(task: asyncio.Task[Any]) -> None:
                self._tasks.pop(what, None)
                if not task.cancelled():
                    task.exception()  # All callers may have been cancelled.

            task.add_done_callback(ended)
        return await asyncio.shield(task)
