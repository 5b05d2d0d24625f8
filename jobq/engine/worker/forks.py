"""Copies that handlers make of a process with ``os.fork`` or ``multiprocessing`` get the usual signal handlers.

A copy inherits the handlers of jobq and of the event loop. SIGTERM would not end it, so leaving a
``multiprocessing.Pool`` would wait for ever. And a copy shares the socket that wakes the loop, so a SIGTERM for the
copy would stop the original.
"""

from __future__ import annotations

import os
import signal
import threading
from functools import cache
from typing import Final

_USUAL: Final = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGQUIT: signal.SIG_DFL,
}


class _Mask(threading.local):
    """The signals that the thread had blocked before it forked."""

    blocked: set[int]


_mask = _Mask()


@cache
def restore_signals_in_forks() -> None:
    """From now on, for the rest of this process."""
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_restore)


def _block() -> None:
    # A signal may come before the copy has its own handlers. Blocked, it waits; otherwise it would be lost.
    _mask.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _USUAL)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.blocked)


def _restore() -> None:
    signal.set_wakeup_fd(-1)
    for number, handler in _USUAL.items():
        signal.signal(number, handler)
    _unblock()
