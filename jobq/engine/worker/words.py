"""Words: the progress and the log lines of runs on their way to Redis.

They are merged and bounded before they are sent, so that a talkative handler costs memory, Redis and the outcomes of
other jobs nothing that grows with the number of its words.
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
"""Bytes of one job's unsent log lines. The server keeps the last 64 KiB: these and a note of what is left out."""
SAY_MAX: Final = 60
"""Jobs whose words one trip carries. Each may move 64 KiB of earlier lines on the server, in about 50 us."""
SAY_BYTES: Final = 1 << 20
"""Bytes of words in one trip."""

Key = tuple[bytes, bytes]
"""Id and token of a run."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LogLine).decode


class Said:
    """What one run said and has not been sent."""

    __slots__ = ("left_out", "lines", "progress", "size")

    def __init__(self) -> None:
        self.progress: bytes | None = None
        self.lines: deque[bytes] = deque()
        self.size = 0
        """Bytes of the lines."""
        self.left_out = 0
        """Lines that were dropped before these."""

    def add(self, line: bytes) -> None:
        """One more line. The oldest go when there are too many."""
        self.lines.append(line)
        self.size += len(line) + 1
        while self.size > LOG_KEPT:
            self.size -= len(self.lines.popleft()) + 1
            self.left_out += 1

    def put_before(self, newer: Said) -> None:
        """These words were not received: they go again, in front of newer ones."""
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
        """The lines, and in front of them a note if some were left out."""
        if not self.left_out:
            return list(self.lines)
        at = _decode(self.lines[0]).at if self.lines else 0
        return [_encode(LogLine(at=at, message=f"... {self.left_out} lines were left out ...")), *self.lines]


class Words:
    """What the runs of one source said and has not been sent. Safe from any thread: sync handlers talk from theirs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._said: dict[Key, Said] = {}

    def __bool__(self) -> bool:
        return bool(self._said)

    def __contains__(self, key: Key) -> bool:
        return key in self._said

    def progress(self, key: Key, value: bytes) -> bool:
        """A run's progress; the last value counts. True: there was nothing to send before."""
        with self._lock:
            return self._add(key, value, None)

    def log(self, key: Key, message: str, at: int) -> bool:
        """A line of a run's log, written at that time, unix ms. True: there was nothing to send before."""
        text = str(message)[:LOG_LINE_MAX].encode(errors="replace").decode()
        line = _encode(LogLine(at=at, message=text))
        with self._lock:
            return self._add(key, None, line)

    def _add(self, key: Key, progress: bytes | None, line: bytes | None) -> bool:
        first = not self._said
        said = self._said.get(key)
        if said is None:
            said = self._said[key] = Said()
        if line is None:
            said.progress = progress
        else:
            said.add(line)
        return first

    def take(self, first: Iterable[Key], most: int) -> dict[Key, Said]:
        """The words of one trip, of ``most`` jobs at most: before all others those of the runs named ``first``."""
        taken: dict[Key, Said] = {}
        size = 0
        with self._lock:
            for key in [key for key in first if key in self._said] + list(self._said)[: most + 1]:
                said = self._said.get(key)
                if said is None:
                    continue
                if len(taken) >= most or size > SAY_BYTES:
                    break
                size += said.size + len(said.progress or b"")
                taken[key] = self._said.pop(key)
        return taken

    def put_back(self, words: dict[Key, Said]) -> None:
        """These were not received: they go again, before all others."""
        if not words:
            return
        with self._lock:
            for key, said in words.items():
                newer = self._said.pop(key, None)
                if newer is not None:
                    said.put_before(newer)
                    words[key] = newer
            self._said = words | self._said


def progress_words(words: dict[Key, Said]) -> list[Any]:
    """As the script ``progress`` takes them."""
    flat: list[Any] = []
    for (job_id, token), said in words.items():
        if said.progress is not None:
            flat += (job_id, token, said.progress)
    return flat


def log_words(words: dict[Key, Said]) -> list[Any]:
    """As the script ``log`` takes them."""
    return [word for (job_id, token), said in words.items() for line in said.text() for word in (job_id, token, line)]
