"""What becomes of outcomes that Redis refuses: they are kept, sent in smaller parts, or given up one job at a time."""

# ruff: noqa: SLF001 - a real server gives these replies only by chance

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from jobq.engine.worker.outbox import COMPLETED, FAILED, OUTCOMES, SETTLE_MAX, Outbox, Outcome, Parcel, Tally
from jobq.engine.worker.settler import REFUSED_TIMES, REFUSED_TIMES_SMALL, SMALL, Settler
from jobq.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = b"1 w"
COUNTS = {"t": Tally()}
TRANSIENT = (StoreUnavailable, StoreRefused, StoreFull)


class FakeStore:
    """Answers, or does not."""

    away = False

    async def look_at_clock(self) -> None:
        if self.away:
            raise StoreUnavailable("away")


class FakeSource:
    """Notes what the settler does with its outcomes."""

    name = "test"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.store = FakeStore()
        self.outbox = Outbox()
        self.standing = 0
        self.reports: list[str] = []
        self.given_up: list[tuple[Outcome, bytes]] = []
        self.stored: list[Outcome] = []

    def warn(self, what: str, error: StoreError) -> None:
        self.reports.append(what)

    def ended(self, outcome: Outcome, jobs: int, size: int = 2) -> None:
        """So many jobs have this outcome."""
        for n in range(jobs):
            self.outbox.rows[outcome] += (b"%d" % n, TOKEN, *[b"x" * size] * (outcome.width - 2))
        if outcome is COMPLETED:
            self.outbox.counts = dict(COUNTS)


class NotingSettler(Settler):
    """Notes in its source which outcomes it has stored or given up."""

    source: Any

    def _stored(self, outcome: Outcome, flat: list[Any], answer: Any, *, repeated: bool) -> None:
        self.source.stored.append(outcome)

    def _give_up(self, outcome: Outcome, flat: list[Any], error: StoreError) -> None:
        self.source.given_up.append((outcome, flat[0]))


class Again:
    again = False


@pytest.fixture
def source() -> Iterator[FakeSource]:
    loop = asyncio.new_event_loop()
    yield FakeSource(loop)
    loop.close()


@pytest.fixture
def settler(source: FakeSource) -> Settler:
    return NotingSettler(cast("Any", source))


def answered(settler: Settler, parcel: Parcel, answers: list[Any]) -> None:
    """The reply to a trip that carried this."""
    steps = [(outcome, Again()) for outcome in parcel.rows]
    settler._settled(parcel, cast("Any", steps), answers)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.name)
@pytest.mark.parametrize("error", TRANSIENT)
def test_outcomes_that_may_be_taken_later_are_all_kept(source, settler, outcome: Outcome, error: type[StoreError]):
    source.ended(outcome, 3)
    before = list(source.outbox.rows[outcome])
    answered(settler, source.outbox.take(), [error("not now")])
    assert source.outbox.rows[outcome] == before
    assert source.outbox.counts == (COUNTS if outcome is COMPLETED else {})
    assert source.given_up == []
    assert source.reports == ["Redis refuses outcomes; they are kept and sent again"]
    assert settler._settling.failures == 1, "the next trip waits"
    assert settler._most == SETTLE_MAX, "the data is not to blame"


def test_a_job_that_redis_refuses_is_found_by_halves_and_the_metrics_of_the_others_are_kept(source, settler):
    source.ended(COMPLETED, 8)
    sizes: list[int] = []
    while not source.given_up:
        parcel = source.outbox.take(settler._most)
        sizes.append(len(parcel))
        answered(settler, parcel, [StoreError("too long")])
    assert sizes == [8, 4, 2, 1]
    assert source.given_up == [(COMPLETED, b"0")]
    assert len(source.outbox.rows[COMPLETED]) == 7 * COMPLETED.width
    assert source.outbox.counts == COUNTS


def test_one_refused_outcome_does_not_keep_another_from_being_stored(source, settler):
    source.ended(COMPLETED, 2)
    source.ended(FAILED, 1)
    answered(settler, source.outbox.take(), [None, StoreError("too long")])
    assert (source.stored, source.given_up) == ([COMPLETED], [(FAILED, b"0")])


@pytest.mark.parametrize(("size", "times"), [(SMALL + 1, REFUSED_TIMES), (2, REFUSED_TIMES_SMALL)])
async def test_a_job_whose_trips_fail_is_given_up_only_while_redis_answers(size: int, times: int):
    source = FakeSource(asyncio.get_running_loop())
    settler = NotingSettler(cast("Any", source))
    source.ended(COMPLETED, 2, size)

    def trip_fails() -> None:
        parcel = source.outbox.take(1)
        settler._not_sent(parcel, StoreUnavailable("cut"))
        source.outbox.put_back(parcel)

    for _ in range(times):
        trip_fails()
    source.store.away = True
    assert not await settler._answers()
    assert source.given_up == [], "the server is away: this says nothing about the job"
    source.store.away = False
    for _ in range(times - 1):
        trip_fails()
        assert await settler._answers()
    trip_fails()
    assert not await settler._answers()
    assert source.given_up == [(COMPLETED, b"0")]
    assert source.outbox.counts == COUNTS, "the metrics of the other job are kept"


async def test_notes_that_redis_refuses_are_left_out_and_the_outcome_stays(caplog: pytest.LogCaptureFixture):
    source = FakeSource(asyncio.get_running_loop())
    settler = NotingSettler(cast("Any", source))
    source.ended(COMPLETED, 1)
    source.outbox.notes.progress((b"0", TOKEN), b"1")
    settler._refused = REFUSED_TIMES
    assert not await settler._answers()
    assert "progress and log lines are left out" in caplog.text
    assert (source.given_up, len(source.outbox.rows[COMPLETED]), source.outbox.counts) == ([], COMPLETED.width, COUNTS)
    assert not source.outbox.notes


def test_a_trim_that_redis_refuses_is_not_repeated_on_every_trip(source, settler):
    source.standing = 500
    settler._trimmed(250)
    assert source.standing == 250
    settler._trimmed(StoreError("no"))
    assert (source.standing, source.reports) == (0, ["Redis refuses to trim finished jobs"])
