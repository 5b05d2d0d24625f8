"""A store over the emptied server, for one script at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from table import Bench

if TYPE_CHECKING:
    from jobq import Connection


@pytest.fixture
def bench(connection: Connection) -> Bench:
    """An empty queue and a clock that stands still."""
    return Bench(connection)
