"""``jobq partitions``, and what other commands say of partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_partitions_are_shown_and_set(jobq: Callable[..., Said], tasks: str):
    assert "1 partition, jobs with keys in 1" in jobq("partitions", "show", "--queue", tasks).out
    said = jobq("partitions", "set", "3", "--queue", tasks)
    assert said.out.splitlines()[1].split() == ["PARTITION", "JOBS"]
    row = jobq("partitions", "show", "--json", "--queue", tasks).json[0]
    assert (row["partitions"], row["jobs"]) == (3, [0, 0, 0])
    said = jobq("enqueue", "echo", "--partition-by", "acme", "--queue", tasks)
    assert jobq("show", said.out.strip(), "--queue", tasks, "--json").json[0]["partition_by"] == "acme"
    assert "partition by acme" in jobq("show", said.out.strip(), "--queue", tasks).out
