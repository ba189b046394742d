"""From the driver's utilisation figures to seconds in which a kernel ran: an integral that never goes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from gpuscale.gpu.source import RawUtilization

LONGEST_PERIOD = 1.0
"""Seconds: NVML documents the driver's sample period as between 1/6 s and 1 s (nvmlUtilization_t)."""
JITTER = 1.5
"""A step up to this many times the longest period may still be one sample's."""


class BusyIntegral:
    """Integrates what :class:`RawUtilization` brings.

    Two counters run side by side: ``busy_seconds``, and ``observed_seconds``, the time of which the utilisation is
    known. Time that was not seen (a gap in the ring, a failed reading, a call that hung) adds to neither, so
    ``busy / observed`` is the mean utilisation of the time that was seen and a gap is not taken for idleness.

    A sample with stamp s and value v says that v percent of the period that ends at s was busy: it adds v/100 of the
    step from the sample before. A step that is longer than a period can be is a gap: then the sample adds one median
    period and the rest stays unknown, unless the driver was asked in between and said that it was idle.
    """

    def __init__(self, window: float, cursor: int = 0, busy: float = 0.0, observed: float = 0.0) -> None:
        self.window = window
        #: Microseconds of the driver's clock: the newest sample that was integrated.
        self.cursor = cursor
        self._resume_at = cursor
        self._primed = False  # whether the ring was read once
        self._busy_base, self._observed_base = busy, observed
        self._busy = self._observed = 0.0
        self._end = 0.0  # of the last sample, in seconds of the driver's clock
        self._until = 0.0  # the same with the idle time that no sample reported
        self._looked_at: float | None = None  # host time
        self._was_idle = False  # whether the driver said so at the last look
        self._astray = False  # whether other than samples moved _end, off the driver's time
        self._steps: deque[float] = deque(maxlen=15)
        self._period = 0.0
        self._points: deque[tuple[float, float, float]] = deque(((0.0, 0.0, 0.0),))

    @property
    def query_cursor(self) -> int:
        """What to ask the driver for: 0 at first, as the ring's history fills the window."""
        return self.cursor if self._primed else 0

    @property
    def busy_seconds(self) -> float:
        """Counter: seconds in which a kernel ran."""
        return self._busy_base + self._busy

    @property
    def observed_seconds(self) -> float:
        """Counter: seconds of which the utilisation is known."""
        return self._observed_base + self._observed

    def duty_cycle(self) -> float | None:
        """Percent of the observed part of the last window that was busy; None if nothing was observed."""
        edge = self._until - self.window
        points = self._points
        while len(points) > 1 and points[1][0] <= edge:
            points.popleft()
        at, busy, observed = points[0]
        if at < edge and len(points) > 1:
            share = (edge - at) / (points[1][0] - at)
            busy += share * (points[1][1] - busy)
            observed += share * (points[1][2] - observed)
        seen = self._observed - observed
        if seen <= 1e-6:
            return None
        return min(100.0, 100.0 * max(0.0, self._busy - busy) / seen)

    def add(self, raw: RawUtilization, at: float) -> int:
        """Integrates ``raw``, read at ``at`` (monotonic seconds); the number of impossible values in it."""
        elapsed = 0.0 if self._looked_at is None else at - self._looked_at
        since_idle = elapsed if self._was_idle else 0.0
        self._looked_at, self._was_idle = at, raw.idle
        bad = 0
        if raw.method == "samples":
            if raw.idle:
                self._add_plain(0.0, elapsed, 2 * LONGEST_PERIOD + 1)
            else:
                bad = self._add_samples(raw, since_idle)
        elif raw.percent is not None:
            seconds = raw.seconds if raw.method == "gpm" else elapsed
            bad = self._add_plain(raw.percent, seconds, elapsed if raw.method == "gpm" else LONGEST_PERIOD)
            self._end = self._until
            self._astray = True
        return bad

    def _add_plain(self, percent: float, seconds: float, longest: float) -> int:
        """A mean over ``seconds``, of which it speaks for at most ``longest``."""
        covered = max(0.0, min(seconds, longest))
        self._until += max(0.0, seconds)
        possible = 0 <= percent <= 100
        if possible:
            self._busy += percent / 100 * covered
            self._observed += covered
        self._mark()
        return 0 if possible else 1

    def _add_samples(self, raw: RawUtilization, since_idle: float) -> int:
        fresh = sorted({stamp: value for stamp, value in raw.samples if stamp > 0}.items())
        if not fresh:
            return 0
        if raw.rewound or (self._primed and self._astray):
            self._synchronise(fresh[-1][0])
            return 0
        if not self._primed:
            return self._prime(fresh, raw.history_is_recent, since_idle)
        return self._integrate(stamp_value for stamp_value in fresh if stamp_value[0] > self.cursor)

    def _synchronise(self, newest: int) -> None:
        """Goes on from ``newest`` without counting what was before it."""
        self.cursor = newest
        shift = newest / 1e6 - self._until
        self._end = self._until = newest / 1e6
        self._points = deque((at + shift, busy, seen) for at, busy, seen in self._points)
        self._primed, self._astray = True, False

    def _prime(self, fresh: Sequence[tuple[int, float]], recent: bool, since_idle: float) -> int:
        """The first batch holds the ring's history. What is before the cursor of the sampler that we take over from
        (or before our own beginning) fills the window only; what is after it was missed, and counts. So does what came
        in the ``since_idle`` seconds since a driver whose ring was dry said that the device was idle."""
        newest, resume = fresh[-1][0], self._resume_at
        idle_until = newest - int(since_idle * 1e6) if recent else newest
        if not 0 < resume <= newest:
            resume = max((stamp for stamp, _ in fresh if stamp <= idle_until), default=idle_until)
        earliest = resume - int(self.window * 1e6)
        past = [sample for sample in fresh if earliest <= sample[0] <= resume] if recent else []
        self._synchronise(past[0][0] if past else resume)
        if past:
            self._points = deque(((self._until, self._busy, self._observed),))
        busy, observed = self.busy_seconds, self.observed_seconds
        bad = self._integrate(past[1:])
        self._busy_base, self._observed_base = busy - self._busy, observed - self._observed
        if self.cursor < resume:
            self._synchronise(resume)
        if since_idle:
            self._until = max(self._until, idle_until / 1e6)
        return bad + self._integrate(sample for sample in fresh if sample[0] > resume)

    def _integrate(self, samples: Iterable[tuple[int, float]]) -> int:
        bad = 0
        for stamp, value in samples:
            end = stamp / 1e6
            step = end - self._end
            if step > self._longest_step():
                covered = min(step, self._period or LONGEST_PERIOD / 6)
            else:
                covered = step
                self._steps.append(step)
                self._period = median(self._steps)
            if 0 <= value <= 100:
                self._busy += value / 100 * covered
                self._observed += max(0.0, end - max(self._until, end - covered))
            else:
                bad += 1
            self.cursor, self._end = stamp, end
            self._until = max(self._until, end)
            self._mark()
        return bad

    def _longest_step(self) -> float:
        if len(self._steps) < 3:
            return JITTER * LONGEST_PERIOD
        return max(0.5, 2.5 * self._period)

    def _mark(self) -> None:
        points = self._points
        if points[-1][0] == self._until:
            points.pop()
        points.append((self._until, self._busy, self._observed))
        while len(points) > 2 and points[1][0] <= self._until - self.window:
            points.popleft()
