"""The commands of circuit breakers: their text, their JSON and their exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said


def test_a_queue_without_breakers(jobq: Callable[..., Said], tasks: str):
    assert "no circuit breakers; declare one" in jobq("breakers", "ls", "--queue", tasks).out
    for words in (["trip", "echo"], ["trip", "echo", "--time", "5m"], ["reset", "echo"], ["rm", "echo"]):
        said = jobq("breakers", *words, "--queue", tasks)
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert "type 'echo' has no circuit breaker; there are: none" in said.err
    assert jobq("breakers", "trip", "echo", "--time", "soon", "--queue", tasks).code == 2
