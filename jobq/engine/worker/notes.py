"""Notes: progress and log lines of running jobs that have not been sent to Redis.

Notes are merged and bounded before they are sent. So a handler that writes very many of them does not use up the memory
of the worker, and does not delay the outcomes of other jobs.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from jobq.engine.model.job import LogLine

if TYPE_CHECKING:
    from collections.abc import Iterable

LOG_LINE_MAX: Final = 8192
"""Characters of one log line."""
LOG_KEPT: Final = 65_000
"""Bytes of one job's unsent log lines. The server keeps 64 KiB: these, and a line that counts dropped ones."""
NOTES_MAX: Final = 125
"""The most jobs whose notes one trip carries."""
NOTES_BYTES: Final = 1 << 20
"""Bytes of notes in one trip. Earlier lines of a job count as well, because the server moves them. Twice as many could
keep Redis 7.0 for more than 10 ms: when they are sent again, it looks for the first new one among thousands of short
lines."""

Key = tuple[bytes, bytes]
"""Id and token of a run."""


class Writer(Protocol):
    """A run that writes log lines. ``lines`` counts them, so that lines that are sent again are not stored twice."""

    lines: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LogLine).decode


class RunNotes:
    """The unsent notes of one run."""

    __slots__ = ("appends", "first", "left_out", "lines", "progress", "size", "spent")

    def __init__(self) -> None:
        self.appends = False
        """Whether the server may have earlier lines of the job."""
        self.progress: bytes | None = None
        self.spent: dict[str, str] = {}
        """What the run really cost, by unit."""
        self.lines: list[bytes] = []
        self.size = 0
        """Bytes of the lines."""
        self.left_out = 0
        """Lines that were dropped before these."""
        self.first = 0
        """How many lines the run wrote before these and those that were dropped."""

    def add(self, line: bytes, number: int) -> None:
        """Add a line, the run's ``number``-th from 0. Drop the oldest ones if they are more than ``LOG_KEPT`` bytes."""
        if not self.lines and not self.left_out:
            self.first = number
        self.lines.append(line)
        self.size += len(line) + 1
        while self.size > LOG_KEPT:
            self.size -= len(self.lines.pop(0)) + 1
            self.left_out += 1

    @property
    def weight(self) -> int:
        """The most bytes that the server has to move."""
        return self.size + len(self.progress or b"") + (LOG_KEPT if self.appends and self.lines else 0)

    def put_before(self, newer: RunNotes) -> None:
        """Put these notes, which Redis did not receive, before newer ones of the same run."""
        newer.appends |= self.appends
        if newer.progress is None:
            newer.progress = self.progress
        newer.spent = self.spent | newer.spent
        if self.lines or self.left_out:
            newer.first = self.first
        for line in reversed(self.lines):
            if newer.left_out or newer.size + len(line) + 1 > LOG_KEPT:
                newer.left_out += 1
            else:
                newer.lines.insert(0, line)
                newer.size += len(line) + 1
        newer.left_out += self.left_out

    def text(self) -> bytes:
        """The lines in one piece. If some were dropped, a first line gives their number."""
        lines = self.lines
        if self.left_out:
            at = _decode(lines[0]).at if lines else 0
            lines = [_encode(LogLine(at, f"... {self.left_out} lines were left out ...")), *lines]
        return b"\n".join(lines)


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
        """Set the progress of a run. Only the last value is sent. Returns True if there was nothing to send before."""
        with self._lock:
            first = not self._unsent
            self._of(key).progress = value
            return first

    def spent(self, key: Key, value: str) -> bool:
        """Set what a run really cost: ``value`` is a unit and an amount. Returns as ``progress``."""
        unit, _, amount = value.partition(" ")
        with self._lock:
            first = not self._unsent
            self._of(key).spent[unit] = amount
            return first

    def log(self, key: Key, writer: Writer, message: str, at: int, *, appends: bool) -> bool:
        """Add a log line, written at ``at`` (unix ms). ``appends``: the server may have lines of earlier runs.
        Returns True if there was nothing to send before."""
        text = str(message)[:LOG_LINE_MAX]
        if not text.isascii():
            text = text.encode(errors="replace").decode()
        line = _encode(LogLine(at, text))
        with self._lock:
            first = not self._unsent
            unsent = self._of(key)
            if appends or writer.lines:
                unsent.appends = True
            unsent.add(line, writer.lines)
            writer.lines += 1
            return first

    def _of(self, key: Key) -> RunNotes:
        unsent = self._unsent.get(key)
        if unsent is None:
            unsent = self._unsent[key] = RunNotes()
        return unsent

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
                size += unsent.weight
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


def charge_rows(notes: dict[Key, RunNotes]) -> list[Any]:
    """The arguments of the script ``charge``."""
    flat: list[Any] = []
    for (job_id, token), unsent in notes.items():
        if unsent.spent:
            flat += (job_id, token, "\n".join(f"{unit} {amount}" for unit, amount in unsent.spent.items()))
    return flat


def log_rows(notes: dict[Key, RunNotes]) -> list[Any]:
    """The arguments of the script ``log``. The lines of a job are one piece, so that earlier ones are moved once."""
    flat: list[Any] = []
    for (job_id, token), unsent in notes.items():
        if unsent.lines or unsent.left_out:
            # The line that says how many were left out counts as the last of these.
            first = unsent.first + max(0, unsent.left_out - 1)
            until = unsent.first + unsent.left_out + len(unsent.lines)
            flat += (job_id, token, first, until, unsent.text())
    return flat
