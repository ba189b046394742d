"""The one thread that calls the driver. Everybody else reads its last snapshot, which never blocks."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuscale.gpu.reading import GpuSnapshot
from gpuscale.gpu.roster import FIRST_RETRY, LAST_RETRY, LOST_AFTER, RECHECK, Roster
from gpuscale.gpu.source import DeviceLostError, GpuSource
from gpuscale.gpu.track import Track

logger = logging.getLogger("gpuscale.gpu")

LONGEST_LOOK = 2.0
"""Seconds between looks at the utilisation: the driver's ring may wrap after 10 s."""
FORMAT = 1
"""Of ``dump``: another format is not restored."""

METHODS: Mapping[str | None, str] = {
    "samples": "is integrated from the driver's samples",
    "rates": "is integrated from the driver's last period (rates): short loads may be missed",
    "gpm": "is integrated from GPU performance monitoring (gpm)",
    None: "cannot be read from this device; its series are absent",
}
"""How utilisation is obtained, for people."""


class Sampler:
    """Reads a source every ``interval`` seconds, integrates, and publishes.

    Times are seconds of ``clock``, which must be CLOCK_MONOTONIC where ``restored`` comes from another process of
    this machine. ``on_cycle`` gets ``dump()`` after each reading, in the sampler's thread.

    A call that hangs in the driver leaves ``snapshot`` answering: values are dropped ``staleness`` seconds after
    they were read, and ``alive`` turns False. An exception in the thread is logged, shows in ``alive``, and the
    thread goes on after a pause.
    """

    def __init__(
        self,
        source: GpuSource,
        *,
        interval: float = 1.0,
        staleness: float = 10.0,
        window: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        restored: Mapping[str, Any] | None = None,
        on_cycle: Callable[[dict[str, Any]], None] | None = None,
        lost_after: float = LOST_AFTER,
        retry: tuple[float, float] = (FIRST_RETRY, LAST_RETRY),
        recheck: float = RECHECK,
    ) -> None:
        self.interval = interval
        self.staleness = staleness
        self.window = window
        self._clock = clock
        self._on_cycle = on_cycle
        self._first_pause, self._last_pause = retry
        self._roster = Roster(source, window, retry=retry, lost_after=lost_after, recheck=recheck)
        self._next_read = 0.0
        self._heartbeat = clock()
        self._crashes = 0
        self._methods: Mapping[str, str | None] = {}
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stop = threading.Event()
        if restored is not None and restored.get("format") == FORMAT:
            self._roster.restore(restored)

    # -- for everybody -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread; in a forked child it begins anew. Harmless when it runs."""
        if self._thread is not None and self._thread.is_alive() and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            self._roster.disown()
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._heartbeat = self._clock()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="gpuscale-gpu", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """Ends the thread and closes the source; False if it hangs in a call and was left behind."""
        self._stop.set()
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return True
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, is not stuck in a call and did not crash at its last try."""
        thread = self._thread
        if thread is None or not thread.is_alive() or self._crashes:
            return False
        return self._clock() - self._heartbeat <= self.staleness + LONGEST_LOOK

    def snapshot(self) -> GpuSnapshot:
        """What is known now. Never calls the driver and never waits; from any thread."""
        now, roster = self._clock(), self._roster
        gpus = tuple(track.reading(now, self.staleness) for track in roster.tracks.values())
        return GpuSnapshot(
            source=roster.source.name,
            gpus=gpus,
            errors=roster.errors,
            decided_by=roster.decided_by,
            why_empty="" if gpus else roster.why_empty,
            alive=self.alive,
            lost_for_good=roster.lost_for_good(now),
        )

    def dump(self) -> dict[str, Any]:
        """Everything that another process needs to go on, as JSON types.

        For the sampler's thread, which hands it to ``on_cycle``: taken from another while a reading is being
        integrated, the counters would be newer than the times beside them.
        """
        return {"format": FORMAT, "source": self._roster.source.name, **self._roster.dump()}

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self, stop: threading.Event) -> None:
        pause = self._first_pause
        try:
            while not stop.is_set():
                try:
                    wait = self._cycle()
                    self._crashes = 0
                    pause = self._first_pause
                except Exception:
                    if not self._crashes:
                        logger.exception("the GPU sampler failed and will go on in %.0f s", pause)
                    self._crashes += 1
                    self._roster.count_error("SAMPLER_CRASHED")
                    self._roster.close()
                    wait = pause
                    pause = min(2 * pause, self._last_pause)
                self._heartbeat = self._clock()
                stop.wait(wait)
        finally:
            self._roster.close()

    def _cycle(self) -> float:
        """One round; the seconds until the next."""
        roster = self._roster
        opened = roster.keep_up(self._beat)
        now = self._beat()
        if opened:
            self._next_read = now
        if not roster.is_open:
            return min(max(roster.retry_at - now, 0.0), LONGEST_LOOK)
        if now >= self._next_read:
            self._next_read = max(self._next_read + self.interval, now + self.interval / 2)
            if self._each(Track.read, list(roster.tracks.values())):
                roster.all_were_read()
            self._say_methods()
            self._hand_out()
        else:
            self._each(Track.look, [track for track in roster.tracks.values() if track.due <= now])
        dues = [track.due for track in roster.tracks.values() if track.device is not None]
        wake = min(self._next_read, roster.retry_at, now + LONGEST_LOOK, *dues)
        return max(0.0, wake - self._clock())

    def _beat(self) -> float:
        self._heartbeat = now = self._clock()
        return now

    def _each(self, read: Callable[[Track, float], bool], tracks: Sequence[Track]) -> bool:
        """Whether all were good."""
        good = True
        for track in tracks:
            if track.device is None:
                continue
            at = self._beat()
            try:
                good = read(track, at) and good
            except DeviceLostError as lost:
                self._roster.lose(track, lost.reason, at)
                good = False
        return good

    def _say_methods(self) -> None:
        """How each GPU's utilisation is obtained, whenever that changes."""
        tracks = self._roster.tracks.values()
        methods = {track.identity.uuid: track.method for track in tracks if track.settled}
        if methods != self._methods:
            for uuid, method in methods.items():
                if method != self._methods.get(uuid, ""):
                    how = METHODS[method]
                    logger.info("GPU %s: utilisation %s", uuid, how)
            self._methods = methods

    def _hand_out(self) -> None:
        if self._on_cycle is None:
            return
        try:
            self._on_cycle(self.dump())
        except Exception as error:  # a full disk must not cost the readings
            self._roster.say(logging.ERROR, f"the readings could not be handed on: {error!r}")
