"""Signals that are waited for by the main thread instead of interrupting it at some instruction."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

_FROM_KERNEL = 0x80
"""si_code of a signal that the kernel sent itself: the terminal's Ctrl-C, which every process of the group got."""


@dataclass(frozen=True)
class Arrived:
    """A signal. ``from_terminal`` when the kernel sent it to the whole foreground group."""

    number: int
    from_terminal: bool

    @property
    def name(self) -> str:
        """SIGTERM."""
        return signal.Signals(self.number).name


def block(numbers: Iterable[int]) -> None:
    """Hold these signals back for :func:`wait`. Call it before any thread starts: threads inherit it.

    A handler is installed too: a signal whose action is to ignore it would be dropped rather than held back.
    """
    numbers = set(numbers)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        signal.signal(number, lambda *_: None)


def wait(numbers: Iterable[int], timeout: float | None = None) -> Arrived | None:
    """The next of the blocked signals; None after ``timeout`` seconds."""
    if timeout is None:
        info = signal.sigwaitinfo(set(numbers))
    else:
        arrived = signal.sigtimedwait(set(numbers), timeout)
        if arrived is None:
            return None
        info = arrived
    return Arrived(info.si_signo, info.si_code == _FROM_KERNEL)
