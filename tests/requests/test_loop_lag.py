"""The event loop's lag, seen from another thread while the loop is blocked."""

from __future__ import annotations

import asyncio
import threading
import time

from gpuscale.requests.loop_lag import TICK_SECONDS, WINDOW_SECONDS, LoopLag, read_lag
from gpuscale.requests.slab import Slab


def test_no_loop_no_lag() -> None:
    assert read_lag(Slab().slots, time.monotonic()) is None
    LoopLag(Slab().slots).start()  # outside a loop: nothing happens


def test_a_block_shows_while_it_lasts_and_after_it() -> None:
    slab = Slab()
    lag = LoopLag(slab.slots)
    during: list[float | None] = []

    async def block() -> None:
        lag.start()
        await asyncio.sleep(0.05)
        time.sleep(TICK_SECONDS + 0.6)
        await asyncio.sleep(0.05)

    watcher = threading.Timer(0.05 + TICK_SECONDS + 0.3, lambda: during.append(read_lag(slab.slots, time.monotonic())))
    watcher.start()
    asyncio.run(block())
    watcher.join()
    assert during[0] is not None
    assert during[0] > 0.1
    after = read_lag(slab.slots, time.monotonic())
    assert after is not None
    assert after > 0.3
    lag.stop()
    assert read_lag(slab.slots, time.monotonic()) is None


def test_old_lags_are_forgotten() -> None:
    slab = Slab()
    now = 1000.0
    slab.slots[5] = now + WINDOW_SECONDS + 3
    slab.slots[8 + 2 * (int(now) % 16)] = now
    slab.slots[8 + 2 * (int(now) % 16) + 1] = 0.7
    assert read_lag(slab.slots, now + 1) == 0.7
    assert read_lag(slab.slots, now + WINDOW_SECONDS + 1) == 0.0
