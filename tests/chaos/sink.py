"""Records of the runs in an SQLite file, which survives every fault of Redis and of the workers."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from jobq import Context

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (job TEXT, fence INTEGER, attempt INTEGER, pid INTEGER, started REAL, ended REAL,
    outcome TEXT, PRIMARY KEY (job, fence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS effects (job TEXT PRIMARY KEY, fence INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (job TEXT, fence INTEGER);
"""


class Sink:
    """Start, effect and end of every run. Effects are fenced: a run that was replaced cannot overwrite the effect of
    the next."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()
        self._db.execute("PRAGMA synchronous=OFF")

    def create(self) -> None:
        """Create the file."""
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_TABLES)

    def _run(self, sql: str, *values: object) -> int:
        with self._lock:
            return self._db.execute(sql, values).rowcount

    def start(self, context: Context) -> None:
        """A run starts."""
        self._run("INSERT INTO runs VALUES (?, ?, ?, ?, ?, NULL, NULL)",
                  context.id, context.fence, context.attempt, os.getpid(), time.time())  # fmt: skip

    def effect(self, context: Context) -> bool:
        """The run takes effect. Returns False if it was refused because a later run was seen."""
        written = self._run(
            "INSERT INTO effects VALUES (?, ?) ON CONFLICT (job) DO UPDATE SET fence = excluded.fence"
            " WHERE excluded.fence >= effects.fence",
            context.id, context.fence,
        )  # fmt: skip
        if not written:
            self._run("INSERT INTO refused VALUES (?, ?)", context.id, context.fence)
        return bool(written)

    def end(self, context: Context, outcome: str) -> None:
        """A run ends: done, failed (on purpose) or cancelled."""
        self._run("UPDATE runs SET ended = ?, outcome = ? WHERE job = ? AND fence = ?",
                  time.time(), outcome, context.id, context.fence)  # fmt: skip

    def all(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def to_itself(self) -> Generator[None]:
        """Keep others from writing. A process that is stopped during a write would keep the file's lock, and so stop
        everybody."""
        self.all("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self.all("COMMIT")

    def unended(self) -> dict[str, int]:
        """The process of each job whose run has not ended."""
        return {str(job): int(str(pid)) for job, pid in self.all("SELECT job, pid FROM runs WHERE ended IS NULL")}

    def extra_starts(self) -> dict[str, int]:
        """For each job, the number of starts beyond the first run and beyond those after a failure on purpose."""
        rows = self.all(
            "SELECT job, count(*) - 1 - sum(outcome IS NOT NULL AND outcome = 'failed') AS extra FROM runs"
            " GROUP BY job HAVING extra > 0"
        )
        # The last failure of a job that fails for good is not followed by another start, so it allows none.
        return {str(job): int(str(extra)) for job, extra in rows}

    def close(self) -> None:
        """Close the file."""
        self._db.close()
