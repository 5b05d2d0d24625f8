"""Warnings about an enqueue that nobody awaits. Without them its job would be missing silently."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

NOT_ENQUEUED: Final = "nothing was enqueued"

# Python prints this warning once per place in the code. Here each one is a job that was not enqueued. Filters
# that are set elsewhere, such as -W error, come first.
warnings.filterwarnings("always", f"coroutine '.*{NOT_ENQUEUED}", RuntimeWarning, append=True)


def no_loop(called: str, instead: str) -> RuntimeError:
    """The error of an enqueue that cannot be awaited, because no event loop runs in its thread."""
    return RuntimeError(
        f"{NOT_ENQUEUED}: {called}() was called without a running event loop; in synchronous code call {instead}, else"
        " write 'await' in a coroutine"
    )


def warns_unless_awaited(called: str, instead: str) -> Callable[[F], F]:
    """For a coroutine function that must be awaited: the warning of Python then says what to write.

    Python shows the name of the function in its warning. So another name is enough, and costs nothing per call.
    """

    def rename(fn: F) -> F:
        fn.__qualname__ = f"{called} ({NOT_ENQUEUED}; write 'await' before it, or in synchronous code call {instead})"
        return fn

    return rename
