"""Events: what happened to the jobs of a queue, in the order of the queue's stream.

An entry of the stream tells of all jobs of one batch. A cursor says how far somebody has read: an entry, and how many
of its jobs. So reading can continue in the middle of an entry, and no event is repeated or left out.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, get_args

import msgspec

from jobq.engine.model.ids import partition_of
from jobq.engine.model.job import State
from jobq.engine.model.outcome import EXPIRED, KILLED
from jobq.engine.model.unreadable import as_text
from jobq.errors import InvalidJob, InvalidQuery

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

EventKind = Literal["started", "progress", "retried", "completed", "failed", "killed", "expired", "removed", "missed"]
"""``started`` and ``progress`` are told by queues with ``events="all"`` only. ``missed`` is about no job."""
EventLevel = Literal["outcomes", "all"]
"""Which events a queue tells."""

KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)
ENDS: Final = frozenset({"completed", "failed", "killed", "expired", "removed"})
"""The events after which a job runs no more, unless somebody retries it by hand."""
CURSOR_MAX: Final = 8000
"""Characters of a cursor of 256 partitions."""
WHOLE: Final = 1 << 30
"""More jobs than an entry has."""
_CURSOR = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15})(?:\.([0-9]{1,4}))?(?:\.p([0-9]{1,3}))?)?")


class QueueEvent(msgspec.Struct, frozen=True):
    """Something that happened to a job.

    ``id``: the same whoever reads it, and no other event of the queue has it. ``cursor``: pass it as ``since`` to
    continue behind this event. ``at``: when it happened, unix ms of the server's clock.
    ``value``: what a handler reported, encoded JSON, for "progress"; None if it has more than 1,024 bytes.
    ``type``: the job's type, for "removed", because nothing else is stored of it. None if it could not be read.
    For "missed", which says that events were dropped before they were read, ``job`` is None.
    """

    name: EventKind
    job: str | None
    queue: str
    at: int
    id: str
    cursor: str
    value: msgspec.Raw | None = None
    type: str | None = None


class Place(NamedTuple):
    """How far somebody has read: an entry of the stream, and how many of its jobs. Places have the order of time."""

    ms: int
    number: int
    jobs: int = WHOLE

    @classmethod
    def of_entry(cls, entry_id: bytes) -> Self:
        """The place behind a whole entry."""
        ms, _, number = entry_id.partition(b"-")
        return cls(int(ms), int(number))

    @property
    def is_time(self) -> bool:
        """Whether it is a time and no entry."""
        return self.number == self.jobs == 0

    @property
    def entry(self) -> bytes:
        """The id of the entry."""
        return b"%d-%d" % (self.ms, self.number)

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}" if self.jobs >= WHOLE else f"{self.ms}-{self.number}.{self.jobs}"


def read_cursor(text: str) -> list[Place]:
    """A cursor of a queue's events, with the places in all partitions. Or unix ms: all events from that time on, in
    each of them.

    :raises InvalidQuery: it is neither.
    """
    found = [_read_place(one) for one in text[:CURSOR_MAX].split(",")]
    if any(partition is not None for _, partition in found):
        raise InvalidQuery(
            f"{text!r:.80} is a cursor of the events of one job: read those of that job with it, or give a cursor of"
            " the queue's events"
        )
    return [place for place, _ in found]


def read_job_cursor(text: str, partition: int) -> Place:
    """A cursor of the events of a job in this partition, or of the queue's events, or unix ms.

    :raises InvalidQuery: it is none of them, or belongs to a job in another partition.
    """
    if "," in text:
        return place_in(read_cursor(text), partition)
    place, other = _read_place(text)
    if other is not None and other != partition:
        raise InvalidQuery(f"{text!r:.80} is a cursor of another job: give one of this job, or of the queue's events")
    return place if other is not None else place_in([place], partition)


def place_in(places: list[Place], partition: int) -> Place:
    """The place in a partition. A cursor that does not have it is older than the partition."""
    if partition < len(places):
        return places[partition]
    return places[0] if places[0].is_time else Place(0, 0, 0)


def is_behind(event: QueueEvent, places: list[Place]) -> bool:
    """Whether an event of a job comes behind these places, one for each partition."""
    since = place_in(places, partition_of(event.job or ""))
    try:
        place, _ = _read_place(event.id)
    except InvalidQuery:  # It was found in the job's row.
        return event.at > since.ms
    return place > since


def earliest(cursors: Collection[str]) -> str:
    """The cursor behind which all events lie that lie behind any of these."""
    every = [read_cursor(cursor) for cursor in cursors]
    most = max(map(len, every))
    return ",".join(str(min(place_in(places, number) for places in every)) for number in range(most))


def _read_place(text: str) -> tuple[Place, int | None]:
    """A place, and the partition that it names."""
    found = _CURSOR.fullmatch(text)
    if not found:
        raise InvalidQuery(
            f"{text!r:.80} is no cursor: give the cursor of an event, such as '1796000000000-0.3', or a time as unix ms"
        )
    ms, number, jobs, partition = found.groups()
    if number is None:
        return Place(int(ms), 0, 0), None
    place = Place(int(ms), int(number), WHOLE if jobs is None else int(jobs))
    return place, None if partition is None else int(partition)


def read_names(names: Collection[str] | None) -> frozenset[str] | None:
    """The events that somebody wants. "missed" is always among them. None: all.

    :raises InvalidQuery: there is no such event.
    """
    if names is None:
        return None
    wrong = [names] if isinstance(names, str) else sorted(set(names) - set(KINDS))
    if wrong or not names:
        raise InvalidQuery(f"there is no event {', '.join(wrong)!r:.80}: give a list of {', '.join(KINDS)}")
    return frozenset(names)


def check_level(level: EventLevel) -> EventLevel:
    """Check and return which events a queue tells.

    :raises InvalidJob: it is another word.
    """
    if level not in get_args(EventLevel):
        raise InvalidJob(f"events is {level!r:.80}: it takes 'outcomes' or 'all'")
    return level


def ending_of(partition: int) -> str:
    """The ending of the ids of a partition's events. The streams of two partitions may have equal entries."""
    return f".p{partition}" if partition else ""


def end_of(state: State, error: str | None) -> EventKind | None:
    """The event of a job's end, from its state and the type of its last error. None: it has not ended."""
    if state is State.FAILED:
        return "killed" if error == KILLED else "expired" if error == EXPIRED else "failed"
    return "completed" if state is State.COMPLETED else None


def event_of_row(name: EventKind, job: str, queue: str, at: int, cursor: str = "") -> QueueEvent:
    """An event that the stream does not tell any more. It was found in the job's row, so ``at`` is the job's end."""
    # A user's id of a job may be as long as an id may be.
    mark = hashlib.sha256(job.encode()).hexdigest()[:16]
    return QueueEvent(name, job, queue, at, f"{at}.{mark}", cursor)


def read_entry(
    queue: str, place: Place, fields: list[bytes], seen: int, job: bytes | None, partition: int = 0
) -> Iterator[QueueEvent]:
    """The events of one entry, without the first ``seen`` jobs. ``job``: only those of this job."""
    name = as_text(fields[0])
    # Most entries do not name the job, and a search in the bytes is much faster than reading them.
    if name not in KINDS or (job is not None and not any(job in word for word in fields[1::2])):
        return
    types: list[bytes] = []
    if name == "progress":
        pairs = list(zip(fields[1::4], fields[3::4], strict=False))
    else:
        pairs = [(one, b"") for one in fields[1].split(b" ")]
        types = fields[3].split(b"\n") if fields[2:3] == [b"types"] else []
    ending = ending_of(partition)
    for at, (one, value) in enumerate(pairs, 1):
        if at > seen and (job is None or one == job):
            cursor = str(place if at == len(pairs) else place._replace(jobs=at))
            told = msgspec.Raw(value) if value else None
            kind = as_text(types[at - 1]) if at <= len(types) else None
            yield QueueEvent(name, as_text(one), queue, place.ms, cursor + ending, cursor, told, kind or None)
