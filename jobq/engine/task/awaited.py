"""Enqueues that nobody awaits are reported: without this the job would be lost silently."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

LOST: Final = "nothing was enqueued"

# Python prints this warning once per place in the code. Here each one is a lost job. Filters that are set elsewhere,
# such as -W error, come first.
warnings.filterwarnings("always", f"coroutine '.*{LOST}", RuntimeWarning, append=True)


def no_loop(called: str, instead: str) -> RuntimeError:
    """The error of an enqueue that is called where no event loop runs, and so cannot be awaited."""
    return RuntimeError(
        f"{LOST}: {called}() was called without a running event loop; in synchronous code call {instead}, else write "
        f"'await' in a coroutine"
    )


def lost_unless_awaited(called: str, instead: str) -> Callable[[F], F]:
    """Make Python's warning about a coroutine that was never awaited say what that means and what to do.

    The warning shows the function's name. To give it another name costs nothing per call.
    """

    def rename(fn: F) -> F:
        fn.__qualname__ = f"{called} ({LOST}; write 'await' before it, or in synchronous code call {instead})"
        return fn

    return rename
