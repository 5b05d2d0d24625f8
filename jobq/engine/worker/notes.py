"""Notes: progress and log lines of running jobs, on their way to Redis.

Notes are merged and bounded before they are sent. So a handler that writes very many of them does not use up the memory
of the worker, and does not delay the outcomes of other jobs.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.job import LogLine

if TYPE_CHECKING:
    from collections.abc import Iterable

LOG_LINE_MAX: Final = 8192
"""Characters of one log line."""
LOG_KEPT: Final = 65_000
"""Bytes of one job's unsent log lines. The server keeps 64 KiB: these, and a line that counts dropped ones."""
NOTES_MAX: Final = 60
"""How many jobs one trip carries notes of. The server may move 64 KiB of earlier lines for each, in about 50 us."""
NOTES_BYTES: Final = 1 << 20
"""Bytes of notes in one trip."""

Key = tuple[bytes, bytes]
"""Id and token of a run."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LogLine).decode


class RunNotes:
    """The unsent notes of one run."""

    __slots__ = ("left_out", "lines", "progress", "size")

    def __init__(self) -> None:
        self.progress: bytes | None = None
        self.lines: deque[bytes] = deque()
        self.size = 0
        """Bytes of the lines."""
        self.left_out = 0
        """Lines that were dropped before these."""

    def add(self, line: bytes) -> None:
        """Add a line. Drop the oldest lines when they are more than ``LOG_KEPT`` bytes."""
        self.lines.append(line)
        self.size += len(line) + 1
        while self.size > LOG_KEPT:
            self.size -= len(self.lines.popleft()) + 1
            self.left_out += 1

    def put_before(self, newer: RunNotes) -> None:
        """Put these notes, which Redis did not receive, in front of newer ones of the same run."""
        if newer.progress is None:
            newer.progress = self.progress
        for line in reversed(self.lines):
            if newer.left_out or newer.size + len(line) + 1 > LOG_KEPT:
                newer.left_out += 1
            else:
                newer.lines.appendleft(line)
                newer.size += len(line) + 1
        newer.left_out += self.left_out

    def text(self) -> list[bytes]:
        """The lines. If some were left out, a line in front of them says how many."""
        if not self.left_out:
            return list(self.lines)
        at = _decode(self.lines[0]).at if self.lines else 0
        return [_encode(LogLine(at=at, message=f"... {self.left_out} lines were left out ...")), *self.lines]


class Notes:
    """The unsent notes of all runs of one source. Thread-safe, because sync handlers write notes from their threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._unsent: dict[Key, RunNotes] = {}

    def __bool__(self) -> bool:
        return bool(self._unsent)

    def __contains__(self, key: Key) -> bool:
        return key in self._unsent

    def progress(self, key: Key, value: bytes) -> bool:
        """Set the progress of a run; the last value counts. Returns True if there was nothing to send before."""
        with self._lock:
            return self._add(key, value, None)

    def log(self, key: Key, message: str, at: int) -> bool:
        """Add a log line, written at ``at`` (unix ms). Returns True if there was nothing to send before."""
        text = str(message)[:LOG_LINE_MAX].encode(errors="replace").decode()
        line = _encode(LogLine(at=at, message=text))
        with self._lock:
            return self._add(key, None, line)

    def _add(self, key: Key, progress: bytes | None, line: bytes | None) -> bool:
        first = not self._unsent
        unsent = self._unsent.get(key)
        if unsent is None:
            unsent = self._unsent[key] = RunNotes()
        if line is None:
            unsent.progress = progress
        else:
            unsent.add(line)
        return first

    def take(self, first: Iterable[Key], most: int) -> dict[Key, RunNotes]:
        """Take the notes for one trip, of ``most`` jobs at most. The runs in ``first`` come before all others."""
        taken: dict[Key, RunNotes] = {}
        size = 0
        with self._lock:
            for key in [key for key in first if key in self._unsent] + list(self._unsent)[: most + 1]:
                unsent = self._unsent.get(key)
                if unsent is None:
                    continue
                if len(taken) >= most or size > NOTES_BYTES:
                    break
                size += unsent.size + len(unsent.progress or b"")
                taken[key] = self._unsent.pop(key)
        return taken

    def put_back(self, notes: dict[Key, RunNotes]) -> None:
        """Put back notes that Redis did not receive. They are sent again before all others."""
        if not notes:
            return
        with self._lock:
            for key, unsent in notes.items():
                newer = self._unsent.pop(key, None)
                if newer is not None:
                    unsent.put_before(newer)
                    notes[key] = newer
            self._unsent = notes | self._unsent


def progress_rows(notes: dict[Key, RunNotes]) -> list[Any]:
    """The arguments of the script ``progress``."""
    flat: list[Any] = []
    for (job_id, token), unsent in notes.items():
        if unsent.progress is not None:
            flat += (job_id, token, unsent.progress)
    return flat


def log_rows(notes: dict[Key, RunNotes]) -> list[Any]:
    """The arguments of the script ``log``."""
    return [
        cell for (job_id, token), unsent in notes.items() for line in unsent.text() for cell in (job_id, token, line)
    ]
