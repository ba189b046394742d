"""Running counts of the driver that wrap, restart or say something impossible, as counters that never go back."""

from __future__ import annotations

from collections import deque

WRAP = 1 << 32
MOST_WATTS = 100_000.0
"""No GPU draws this much; an energy counter that says so is wrong."""
MOST_BYTES_PER_SECOND = 16e12
"""Several times what all links of a GPU carry."""


class RunningCount:
    """Adds up the increments of a driver's count. Its first figure, ``raw``, is where the counter starts."""

    def __init__(
        self, most_per_second: float, value: float | None = None, raw: int | None = None, at: float = 0.0
    ) -> None:
        self.most_per_second = most_per_second
        self.value = value
        self.raw = raw
        self.at = at
        self._doubtful: int | None = None

    def add(self, raw: int, at: float) -> bool:
        """Takes the figure read at ``at`` (monotonic seconds); False if it cannot be.

        A count that went back has wrapped at 2^32, or else it started again (the driver was loaded anew) or is
        wrong; one that jumped is wrong or was set. Which one shows at the next reading: if that goes on from there,
        so do we, and what was between is unknown and adds nothing.
        """
        if self.raw is None or self.value is None:
            self.value = float(raw) if self.value is None else self.value
            self.raw, self.at = raw, at
            return True
        step = self._step(self.raw, raw, at)
        if step is None and self._doubtful is not None and raw > self._doubtful:
            step = self._step(self._doubtful, raw, at)
        if step is None:
            self._doubtful = raw
            return False
        self.value += step
        self.raw, self.at, self._doubtful = raw, at, None
        return True

    def _step(self, before: int, raw: int, at: float) -> int | None:
        most = self.most_per_second * max(at - self.at, 0.1)
        step = raw - before
        if step < 0 and before < WRAP:
            step += WRAP
        return step if 0 <= step <= most else None


class MeanPower:
    """Mean power from the energy counter's slope over about the last second.

    The driver's own reading is the mean of a fraction of a second on many devices; the counter's slope sees all.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, at: float, millijoules: float) -> float | None:
        """Milliwatts, or None until the counter has moved over at least 0.9 s."""
        points = self._points
        while len(points) > 1 and points[1][0] <= at - 0.9:
            points.popleft()
        points.append((at, millijoules))
        begin, before = points[0]
        seconds = at - begin
        if not 0.9 <= seconds <= 5.0:
            if seconds > 5.0:
                points.clear()
                points.append((at, millijoules))
            return None
        return (millijoules - before) / seconds if millijoules > before else None
