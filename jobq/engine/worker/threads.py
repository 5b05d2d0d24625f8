"""The threads of sync handlers."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor


class Threads:
    """A thread per slot, made when they are needed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._executor: ThreadPoolExecutor | None = None

    @property
    def executor(self) -> Executor:
        """Where the next sync handler runs."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._most, thread_name_prefix="jobq")
        return self._executor

    def abandon(self) -> None:
        """A thread is stuck in a run that was given up: later runs get new threads, so it blocks nobody."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def close(self) -> None:
        """No more runs. Threads that still run cannot be stopped and are not waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
