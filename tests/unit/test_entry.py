"""Entries of jobs whose type and options are those of the job before them."""

from __future__ import annotations

import msgspec
import pytest

from jobq.engine.model.entry import Entry, EntryMaker, encode_entry
from jobq.engine.model.ids import IdMaker
from jobq.engine.model.job import LimitBy, NewJob, Options
from jobq.errors import InvalidJob

NOW = 1_700_000_000_000
PAYLOADS = [b'{"to":"ada"}', b"{}", b"null", b"[1,2]", '"\\u0000 \u00fc"'.encode()]

OPTIONS = {
    "none": Options(),
    "numbers": Options(priority=-3, delay=5_000, attempts=None, timeout=1_000, retention=60_000, version=7),
    "lifo": Options(lifo=True),
    "run_at": Options(run_at=NOW + 5),
    "metadata": Options(metadata={"a": "b"}),
    "key": Options(key="k"),
    "limits": Options(limits=("api",)),
    "limits_by": Options(limits_by=(LimitBy("tenant", "to"),)),
    "group": Options(group="g"),
    "slots": Options(slots=2),
    "costs": Options(costs={"tokens": 3}),
    "breaker": Options(breaker=True),
    "expires": Options(expires=500),
    "deadline_at": Options(deadline_at=NOW + 500),
    "partition_by": Options(partition_by="p"),
}


class Counted(IdMaker):
    """Makes ids whose random digits are always the same, so that two makers make the same ids."""

    def redraw(self) -> None:
        self._node = "00000"
        self._count = 0


def both(jobs: list[NewJob], now: int = NOW) -> tuple[list[Entry], list[Entry]]:
    maker, ids = EntryMaker(Counted()), Counted()
    return [maker.make(job, now) for job in jobs], [encode_entry(job, ids, now) for job in jobs]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_entry_is_the_same_whether_its_options_were_seen_before_or_not(name: str) -> None:
    options = OPTIONS[name]
    usual = [NewJob("send", msgspec.Raw(payload), options) for payload in PAYLOADS if name != "limits_by"]
    jobs = [
        *usual,
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options, id="own"),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options, idempotency_key="request"),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options, offset=20),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options, rerun_of="earlier"),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options, trace={"traceparent": "00-1-2-00"}),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options),
        NewJob('"other\\', msgspec.Raw(b'{"to":"bob"}'), options),
        NewJob('"other\\', msgspec.Raw(b'{"to":"bob"}'), options),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), Options(priority=1)),
        NewJob("send", msgspec.Raw(b'{"to":"bob"}'), options),
    ]
    made, expected = both(jobs)
    assert made == expected


def test_a_job_says_its_time_where_its_id_does_not() -> None:
    """The counter of ids is used up before the clock of the server has moved."""
    options = Options()
    jobs = [NewJob("send", msgspec.Raw(b"{}"), options) for _ in range(40_000)]
    made, expected = both(jobs)
    assert made == expected
    assert b'"at":' not in made[0][1]
    assert b'"at":' in made[-1][1]


def test_a_type_that_has_no_json_is_refused_as_often_as_it_is_tried() -> None:
    maker, options = EntryMaker(IdMaker()), Options()
    for _ in range(3):
        with pytest.raises(InvalidJob, match="cannot be encoded as JSON"):
            maker.make(NewJob("\ud800", msgspec.Raw(b"{}"), options), NOW)
