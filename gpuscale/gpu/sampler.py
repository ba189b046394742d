"""The one thread that calls the driver. Everybody else reads its last snapshot, which never blocks."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuscale.errors import SourceUnavailableError
from gpuscale.gpu.reading import GpuIdentity, GpuSnapshot
from gpuscale.gpu.source import DeviceLostError, GpuSource
from gpuscale.gpu.track import Track

logger = logging.getLogger("gpuscale.gpu")

LONGEST_LOOK = 2.0
"""Seconds between looks at the utilisation: the driver's ring may wrap after 10 s."""
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until a source that could not be opened is tried again, doubling."""
UNDECIDED_RETRY = 5.0
"""Seconds at most between tries while the driver answers and no device is ours: the app may just be starting."""
LOST_AFTER = 60.0
"""Seconds without a GPU that was there before until it counts as lost for good."""
MOST_TRACKS = 256
"""UUIDs that are remembered: MIG instances come and go."""
FORMAT = 1
"""Of ``dump``: another format is not restored."""

METHODS: Mapping[str | None, str] = {
    "samples": "is integrated from the driver's samples",
    "rates": "is integrated from the driver's last period (rates): short loads may be missed",
    "gpm": "is integrated from GPU performance monitoring (gpm)",
    None: "cannot be read from this device; its series are absent",
}
"""How utilisation is obtained, for people."""
_READING = "no reading yet"


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
    ) -> None:
        self.source = source
        self.interval = interval
        self.staleness = staleness
        self.window = window
        self.lost_after = lost_after
        self._clock = clock
        self._on_cycle = on_cycle
        self._first_retry, self._last_retry = retry
        self._tracks: Mapping[str, Track] = {}
        self._errors: Mapping[str, int] = {}
        self._decided_by = ""
        self._why_empty = _READING
        self._open = False
        self._failing_since: float | None = None
        self._retry_at = 0.0
        self._retry_after = self._first_retry
        self._next_read = 0.0
        self._heartbeat = clock()
        self._crashes = 0
        self._said = ""
        self._methods: Mapping[str, str | None] = {}
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stop = threading.Event()
        if restored is not None and restored.get("format") == FORMAT:
            self._restore(restored)

    # -- for everybody -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread; in a forked child it begins anew. Harmless when it runs."""
        if self._thread is not None and self._thread.is_alive() and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            self._open = False  # what the parent opened is not ours
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
        now = self._clock()
        gpus = tuple(track.reading(now, self.staleness) for track in self._tracks.values())
        return GpuSnapshot(
            source=self.source.name,
            gpus=gpus,
            errors=self._errors,
            decided_by=self._decided_by,
            why_empty="" if gpus else self._why_empty,
            alive=self.alive,
            lost_for_good=self._lost_for_good(now),
        )

    def dump(self) -> dict[str, Any]:
        """Everything that another process needs to go on, as JSON types.

        For the sampler's thread, which hands it to ``on_cycle``: taken from another while a reading is being
        integrated, the counters would be newer than the times beside them.
        """
        return {
            "format": FORMAT,
            "source": self.source.name,
            "errors": dict(self._errors),
            "decided_by": self._decided_by,
            "gpus": {uuid: track.dump() for uuid, track in self._tracks.items()},
        }

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self, stop: threading.Event) -> None:
        pause = self._first_retry
        try:
            while not stop.is_set():
                try:
                    wait = self._cycle()
                    self._crashes = 0
                    pause = self._first_retry
                except Exception:
                    if not self._crashes:
                        logger.exception("the GPU sampler failed and will go on in %.0f s", pause)
                    self._crashes += 1
                    self._count_error("SAMPLER_CRASHED")
                    self._close()
                    wait = pause
                    pause = min(2 * pause, self._last_retry)
                self._heartbeat = self._clock()
                stop.wait(wait)
        finally:
            self._close()

    def _cycle(self) -> float:
        """One round; the seconds until the next."""
        now = self._beat()
        if now >= self._retry_at and (not self._open or self._failing_since is not None):
            self._open_source(now)
        if not self._open:
            return min(max(self._retry_at - self._clock(), 0.0), LONGEST_LOOK)
        if now >= self._next_read:
            self._next_read = max(self._next_read + self.interval, now + self.interval / 2)
            if self._each(Track.read, list(self._tracks.values())) and self._failing_since is None:
                self._retry_after = self._first_retry
            self._say_methods()
            self._hand_out()
        else:
            self._each(Track.look, [track for track in self._tracks.values() if track.due <= now])
        return max(0.0, min(self._next_wake(), now + LONGEST_LOOK) - self._clock())

    def _next_wake(self) -> float:
        dues = [track.due for track in self._tracks.values() if track.device is not None]
        wakes = [self._next_read, *dues]
        if self._failing_since is not None:
            wakes.append(self._retry_at)
        return min(wakes)

    def _beat(self) -> float:
        self._heartbeat = now = self._clock()
        return now

    def _say_methods(self) -> None:
        """How each GPU's utilisation is obtained, whenever that changes."""
        methods = {track.identity.uuid: track.method for track in self._tracks.values() if track.settled}
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
            self._say(logging.ERROR, f"the readings could not be handed on: {error!r}")

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
                self._lose(track, lost.reason, at)
                good = False
        return good

    def _lose(self, track: Track, reason: str, at: float) -> None:
        track.device = None
        track.lost_reason = reason
        track.lost_since = at if track.lost_since is None else track.lost_since
        self._say(logging.WARNING, f"GPU {track.identity.uuid} cannot be read: {reason}; trying again")
        if self._failing_since is None:
            self._plan_retry(at)

    def _open_source(self, now: float) -> None:
        """Opens the source (anew) and finds the devices; plans the next try if any is missing."""
        self._close()
        try:
            self.source.open()
            self._beat()
            found = self.source.devices()
        except SourceUnavailableError as error:
            self._close()
            self._failed(error.reason, str(error), now)
            return
        self._open = True
        self._decided_by = found.decided_by
        self._why_empty = found.why_empty
        for reason in found.failures:
            self._count_error(reason)
        self._adopt(found.devices, now)
        missing = [track for track in self._tracks.values() if track.device is None]
        if missing or not found.devices:
            if not found.devices:
                self._say(logging.WARNING, f"no GPU: {found.why_empty or 'NVML shows none'}")
                self._retry_after = min(self._retry_after, UNDECIDED_RETRY)
            self._plan_retry(now)
        else:
            self._failing_since = None
            names = ", ".join(track.identity.name for track in self._tracks.values())
            self._say(logging.INFO, f"reading {len(self._tracks)} GPU(s) from {self.source.name}: {names}")

    def _adopt(self, devices: Sequence[Any], now: float) -> None:
        tracks = dict(self._tracks)
        for device in devices:
            uuid = device.identity.uuid
            track = tracks.get(uuid)
            if track is None:
                track = tracks[uuid] = Track(device.identity, self.window)
            track.identity = device.identity
            track.device = device
        for track in tracks.values():
            if track.device is None and track.lost_since is None:
                track.lost_since = now
        while len(tracks) > MOST_TRACKS:
            tracks.pop(next(uuid for uuid, track in tracks.items() if track.device is None))
        self._tracks = tracks
        self._next_read = now

    def _failed(self, reason: str, message: str, now: float) -> None:
        self._why_empty = message
        self._count_error(reason)
        for track in self._tracks.values():
            if track.lost_since is None:
                track.lost_since, track.lost_reason = now, reason
        level = logging.INFO if reason == "SWITCHED_OFF" else logging.WARNING
        self._say(level, f"no GPU values: {message}")
        self._plan_retry(now)

    def _plan_retry(self, now: float) -> None:
        if self._failing_since is None:
            self._failing_since = now
        self._retry_at = now + self._retry_after
        self._retry_after = min(2 * self._retry_after, self._last_retry)

    def _close(self) -> None:
        for track in self._tracks.values():
            track.device = None
        self._open = False
        self.source.close()

    # -- small things --------------------------------------------------------------------------------------------

    def _restore(self, restored: Mapping[str, Any]) -> None:
        self._errors = dict(restored.get("errors", {}))
        self._decided_by = str(restored.get("decided_by", ""))
        self._tracks = {
            uuid: Track(GpuIdentity(**state["identity"]), self.window, state)
            for uuid, state in restored.get("gpus", {}).items()
        }

    def _lost_for_good(self, now: float) -> bool:
        lost = [track.lost_since for track in self._tracks.values() if track.lost_since is not None]
        return bool(lost) and now - min(lost) > self.lost_after

    def _count_error(self, reason: str) -> None:
        errors = dict(self._errors)
        errors[reason] = errors.get(reason, 0) + 1
        self._errors = errors

    def _say(self, level: int, message: str) -> None:
        """Each thing once, until something else is to be said."""
        if message != self._said:
            self._said = message
            logger.log(level, message)
