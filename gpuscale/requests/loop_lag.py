"""How late the event loop is: a tick that notes its own delay, readable while the loop is blocked.

A handler that blocks the loop hides the requests that wait behind it (they were never accepted); the lag is what
shows them. The numbers lie in the slab, so the endpoint's thread, or another worker, sees a block while it lasts.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from gpuscale.requests.slab import LAG_SECONDS, LAG_SLOT, LOOP_DUE_SLOT

TICK_SECONDS = 0.25
WINDOW_SECONDS = 15


class LoopLag:
    """Ticks on one event loop and writes each delay into ``slots`` (of a slab)."""

    def __init__(self, slots: memoryview[float]) -> None:
        self._slots = slots
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin on the running loop; nothing where none runs (trio) or it ticks already."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._loop is loop:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop = loop
        self._schedule(monotonic())

    def move_to(self, slots: memoryview[float]) -> None:
        """Write into another slab from now on."""
        self._slots = slots
        slots[LOOP_DUE_SLOT] = self._due

    def stop(self) -> None:
        """The loop ends: it is no longer late."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None
        self._due = self._slots[LOOP_DUE_SLOT] = 0.0

    def _schedule(self, now: float) -> None:
        if self._loop is None:
            return
        self._due = self._slots[LOOP_DUE_SLOT] = now + TICK_SECONDS
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        now = monotonic()
        lag = max(0.0, now - self._due)
        second = int(now)
        slot = LAG_SLOT + 2 * (second % LAG_SECONDS)
        if self._slots[slot] != second:
            self._slots[slot + 1] = lag
            self._slots[slot] = second
        elif lag > self._slots[slot + 1]:
            self._slots[slot + 1] = lag
        self._schedule(now)


def read_lag(slots: memoryview[float], now: float) -> float | None:
    """The worst lag of the last 15 s in seconds, the present delay included; None without a loop."""
    due: float = slots[LOOP_DUE_SLOT]
    if due == 0.0:
        return None
    worst = max(0.0, now - due)
    for slot in range(LAG_SLOT, LAG_SLOT + 2 * LAG_SECONDS, 2):
        if slots[slot] > now - WINDOW_SECONDS:
            worst = max(worst, slots[slot + 1])
    return worst
