"""Which GPUs are read: opens the source, keeps a track for each UUID, and plans when to look again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from gpuscale.errors import SourceUnavailableError
from gpuscale.gpu.reading import GpuIdentity
from gpuscale.gpu.source import Enumeration, GpuSource
from gpuscale.gpu.track import Track

logger = logging.getLogger("gpuscale.gpu")

FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until a source that could not be opened is tried again, doubling."""
UNDECIDED_RETRY = 5.0
"""Seconds at most between tries while the driver answers and no device is ours: the app may just be starting."""
LOST_AFTER = 60.0
"""Seconds without a GPU that was there before until it counts as lost for good."""
RECHECK = 60.0
"""Seconds after which it is asked again which devices are ours: a pod's containers start one after the other."""
MOST_TRACKS = 256
"""UUIDs that are remembered: MIG instances come and go."""


class Roster:
    """The tracks by UUID, and what to say about devices that are not there.

    The sampler's thread is the only one to change it. ``tracks`` and ``errors`` are replaced, never changed in place,
    so that any thread may read them. Times are seconds of the sampler's clock.
    """

    def __init__(
        self, source: GpuSource, window: float, *, retry: tuple[float, float], lost_after: float, recheck: float
    ) -> None:
        self.source = source
        self.is_open = False
        self.tracks: Mapping[str, Track] = {}
        self.errors: Mapping[str, int] = {}
        """Failures that belong to no device that is tracked, by reason."""
        self.decided_by = ""
        self.why_empty = "no reading yet"
        self.retry_at = 0.0
        """When to open the source (anew); infinite while nothing is missing."""
        self._window = window
        self._first_retry, self._last_retry = retry
        self._retry_after = self._first_retry
        self._lost_after = lost_after
        self._recheck = recheck
        self._recheck_at = 0.0
        self._found = Enumeration()
        self._former: dict[str, Track] = {}  # of devices that are not ours any more: their counters go on if they are
        self._said = ""

    def keep_up(self, beat: Callable[[], float]) -> bool:
        """Opens the source when it is time to, or when other devices are ours; whether it did.

        ``beat`` tells the time, and others that the thread goes on: each call of the driver may hang.
        """
        now = beat()
        due = now >= self.retry_at
        if not due and self.is_open and now >= self._recheck_at:
            self._recheck_at = now + self._recheck
            due = self._found.outdated()
        if due:
            self._open(beat)
        return due

    def close(self) -> None:
        """Gives everything back; ``keep_up`` opens it anew."""
        for track in self.tracks.values():
            track.device = None
        self.is_open = False
        self.retry_at = 0.0
        self.source.close()

    def disown(self) -> None:
        """In a forked child: what the parent opened is not ours."""
        self.is_open = False
        self.retry_at = 0.0

    def lose(self, track: Track, reason: str, now: float) -> None:
        """A device that was there is gone."""
        track.device = None
        track.lost_reason = reason
        track.lost_since = now if track.lost_since is None else track.lost_since
        self.say(logging.WARNING, f"GPU {track.identity.uuid} cannot be read: {reason}; trying again")
        if self.retry_at == math.inf:
            self._plan_retry(now)

    def all_were_read(self) -> None:
        """The next trouble is met quickly again."""
        if self.retry_at == math.inf:
            self._retry_after = self._first_retry

    def lost_for_good(self, now: float) -> bool:
        """Whether a device that was there has been gone for long. From any thread."""
        lost = [track.lost_since for track in self.tracks.values() if track.lost_since is not None]
        return bool(lost) and now - min(lost) > self._lost_after

    def count_error(self, reason: str, times: int = 1) -> None:
        """Adds to ``errors``."""
        self.errors = {**self.errors, reason: self.errors.get(reason, 0) + times}

    def say(self, level: int, message: str) -> None:
        """Each thing once, until something else is to be said."""
        if message != self._said:
            self._said = message
            logger.log(level, message)

    def dump(self) -> dict[str, Any]:
        """JSON types from which ``restore`` continues."""
        return {
            "errors": dict(self.errors),
            "decided_by": self.decided_by,
            "gpus": {uuid: track.dump() for uuid, track in self.tracks.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What another process knew."""
        self.errors = dict(state.get("errors", {}))
        self.decided_by = str(state.get("decided_by", ""))
        self.tracks = {
            uuid: Track(GpuIdentity(**known["identity"]), self._window, known)
            for uuid, known in state.get("gpus", {}).items()
        }

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self, beat: Callable[[], float]) -> None:
        """Opens the source (anew) and finds the devices; plans the next try if any is missing."""
        self.close()
        try:
            self.source.open()
            beat()
            found = self.source.devices()
        except SourceUnavailableError as error:
            self.close()
            self._failed(error.reason, str(error), beat())
            return
        now = beat()
        self.is_open = True
        self.retry_at = math.inf
        self._recheck_at = now + self._recheck
        self._found = found
        for reason in found.failures:
            self.count_error(reason)
        self._adopt(found, now)
        self.why_empty = found.why_empty
        self._report(found, now)

    def _adopt(self, found: Enumeration, now: float) -> None:
        """Gives each device the track of its UUID. What another way of deciding had named is no longer ours."""
        overruled = bool(found.devices) and self.decided_by not in ("", found.decided_by)
        self.decided_by = found.decided_by
        tracks = dict(self.tracks)
        for device in found.devices:
            uuid = device.identity.uuid
            track = tracks.get(uuid) or self._former.pop(uuid, None) or Track(device.identity, self._window)
            tracks[uuid] = track
            track.identity = device.identity
            track.device = device
        absent = [uuid for uuid, track in tracks.items() if track.device is None]
        for uuid in absent if overruled else absent[: max(0, len(tracks) - MOST_TRACKS)]:
            self._retire(tracks.pop(uuid))
        for track in tracks.values():
            if track.device is None and track.lost_since is None:
                track.lost_since = now
        self.tracks = tracks

    def _retire(self, track: Track) -> None:
        """Shows it no more. The failures that it counted stay counted."""
        for reason, times in track.errors.items():
            self.count_error(reason, times)
        track.errors = {}
        track.lost_since = None
        if len(self._former) < MOST_TRACKS:
            self._former[track.identity.uuid] = track

    def _report(self, found: Enumeration, now: float) -> None:
        """Says what is read, and plans the next try if that is not all there is."""
        if not found.devices:
            self.say(logging.WARNING, f"no GPU: {found.why_empty or 'NVML shows none'}")
            self._retry_after = min(self._retry_after, UNDECIDED_RETRY)
            self._plan_retry(now)
            return
        by = f", this pod's by {found.decided_by}" if found.decided_by != self.source.name else ""
        names = ", ".join(device.identity.name for device in found.devices)
        reading = f"reading {len(found.devices)} GPU(s) from {self.source.name}{by}: {names}"
        if found.failures:
            reasons = ", ".join(sorted(set(found.failures)))
            self.say(logging.WARNING, f"{reading}; another one cannot be opened: {reasons}; trying again")
            self._plan_retry(now)
        elif any(track.device is None for track in self.tracks.values()):
            self._plan_retry(now)
        else:
            self.say(logging.INFO, reading)

    def _failed(self, reason: str, message: str, now: float) -> None:
        self.why_empty = message
        self.count_error(reason)
        for track in self.tracks.values():
            if track.lost_since is None:
                track.lost_since, track.lost_reason = now, reason
        level = logging.INFO if reason == "SWITCHED_OFF" else logging.WARNING
        self.say(level, f"no GPU values: {message}")
        self._plan_retry(now)

    def _plan_retry(self, now: float) -> None:
        self.retry_at = now + self._retry_after
        self._retry_after = min(2 * self._retry_after, self._last_retry)
