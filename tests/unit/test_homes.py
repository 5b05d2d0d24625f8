"""Which partition a job belongs to."""

from __future__ import annotations

import pytest

from jobq import InvalidJob, Queue, Unique
from jobq.engine.model.entry import encode_entry
from jobq.engine.model.ids import LENGTH, IdMaker, in_partition, partition_of, time_of
from jobq.engine.model.spread import Spread, check_partitions, home_of, read_spread

HOMES = 16


def home(**options: object) -> int | None:
    queue = Queue("test")
    idempotency_key = options.pop("idempotency_key", None)
    new = queue.new("t", {"customer": "acme"}, **options)  # pyright: ignore[reportArgumentType]
    if idempotency_key:
        from msgspec.structs import replace

        new = replace(new, idempotency_key=idempotency_key)
    return home_of(encode_entry(new, IdMaker(), 1_000), HOMES)


@pytest.mark.parametrize(
    ("job_id", "partition"),
    [
        ("0htk3v9c20047qm2x~3", 3),
        ("invoice~255", 255),
        ("invoice", 0),
        ("invoice~0", 0),
        ("invoice~07", 0),
        ("invoice~256", 0),
        ("invoice~1234", 0),
        ("invoice~x", 0),
        ("a~3~5", 5),
        ("", 0),
    ],
)
def test_an_id_names_its_partition(job_id: str, partition: int):
    assert partition_of(job_id) == partition_of(job_id.encode()) == partition


def test_an_id_tells_the_time_in_every_partition():
    made = IdMaker().new(1_700_000_000_123)
    assert len(made) == LENGTH
    assert [time_of(in_partition(made, number)) for number in (0, 3, 255)] == [1_700_000_000_123] * 3
    assert time_of(made + "~x") == time_of(made[:-1] + "~3") == time_of("~3") == 0


def test_jobs_with_the_same_key_have_the_same_home():
    assert home() is None
    assert home(idempotency_key="r") is not None
    of_value = home(limits=["api:acme"])
    assert of_value is not None
    assert of_value == home(limits=["db:acme"]) == home(limits=["api:acme", "db:acme"]) == home(group="acme")
    assert home(key="k") == home(key="k", idempotency_key="other", group="else")
    assert {home(unique=Unique(by="customer"))} == {home(unique=Unique(by="customer"))}
    assert len({home(key=f"k{number}") for number in range(200)}) == HOMES
    assert home(limits=["schedule:nightly"]) == 0


def test_keys_with_different_homes_are_refused():
    with pytest.raises(InvalidJob, match="different partitions"):
        home(limits=["api:a", "api:b"])


def test_partition_by_alone_decides():
    by = home(partition_by="acme")
    assert by == home(limits=["api:acme"])
    others = {"key": "k", "limits": ["api:a", "api:b"], "group": "else", "idempotency_key": "r"}
    assert home(partition_by="acme", **others) == by
    with pytest.raises(InvalidJob, match="or say with partition_by="):
        home(limits=["api:a", "api:b"])
    for wrong in ("", "a" * 201, "a\n", 7):
        with pytest.raises(InvalidJob, match="partition_by"):
            home(partition_by=wrong)


def test_a_task_says_by_what_its_jobs_are_parted():
    queue = Queue("test")

    @queue.task(partition_by="{tenant}")
    async def template(tenant: str | None = None) -> None: ...

    @queue.task(partition_by=lambda tenant: f"t{tenant}", group=lambda tenant: f"g{tenant}")
    async def function(tenant: int) -> None: ...

    def entry(type: str, payload: object, **options: object) -> tuple[str | None, str]:
        new = queue.named(queue.new(type, payload, **options))  # pyright: ignore[reportArgumentType]
        row = encode_entry(new, IdMaker(), 1_000)
        return row[5], row[2]

    assert entry("template", {"tenant": "a"})[0] == "a"
    assert entry("template", {})[0] is None
    assert entry("template", {"tenant": "a"}, partition_by="b")[0] == "b"
    assert entry("function", {"tenant": 3}) == ("t3", "0 0 0\v@g3")
    assert entry("function", {"tenant": 3}, partition_by="b", group="g") == ("b", "0 0 0\v@g")
    for wrong in ("{other}", "{tenant", 7):
        with pytest.raises(InvalidJob, match="partition_by"):
            queue.task(partition_by=wrong)(template)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_what_is_stored_is_read_or_ignored():
    assert read_spread(b"8 4 16 operator") == Spread(8, 4, 16, "operator")
    assert read_spread(None) == read_spread(b"") == read_spread(b"8 4") == read_spread(b"\xff") == Spread(1, 1, 1, "")


@pytest.mark.parametrize("wrong", [0, -1, 257, True, "8", 1.5])
def test_a_number_of_partitions_is_checked(wrong: object):
    with pytest.raises(InvalidJob, match="partitions is"):
        check_partitions(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidJob, match="partitions is"):
        Queue("test", partitions=wrong)  # pyright: ignore[reportArgumentType]
