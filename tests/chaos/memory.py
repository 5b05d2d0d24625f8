"""Handlers that eat memory, and what stops them."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


def eat(bite: int) -> NoReturn:
    """Allocate memory without end, ``bite`` bytes at a time."""
    eaten: tuple[Any, ...] = ()
    while True:
        # A chain of small objects. Growing a list takes one large piece, and would leave all small ones.
        eaten = (bytearray(bite), eaten)


@contextlib.contextmanager
def limited(room: int) -> Iterator[None]:
    """Limit this process to ``room`` bytes more than it has, by RLIMIT_AS. Then the allocator refuses."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
