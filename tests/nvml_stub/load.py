"""Load functions: each can write itself as a line of the state file and integrate itself exactly."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Load:
    """Utilisation over time; levels in percent. Times are seconds after the load was given to the device."""

    def line(self) -> str:
        raise NotImplementedError

    def integral(self, begin: float, end: float) -> float:
        """Seconds at full load between two times after the load's own beginning."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Constant(Load):
    level: float

    def line(self) -> str:
        return f"const level={self.level!r}"

    def integral(self, begin: float, end: float) -> float:
        return (end - begin) * self.level / 100


@dataclass(frozen=True)
class _Square(Load):
    period: float
    duty: float
    level: float
    low: float
    phase: float

    def line(self) -> str:
        return (
            f"square period={self.period!r} duty={self.duty!r} level={self.level!r} low={self.low!r}"
            f" phase={self.phase!r}"
        )

    def _until(self, x: float) -> float:
        turns = math.floor(x / self.period)
        within = x - turns * self.period
        on = self.duty * self.period
        full = on * self.level + (self.period - on) * self.low
        return (turns * full + min(within, on) * self.level + max(0.0, within - on) * self.low) / 100

    def integral(self, begin: float, end: float) -> float:
        return self._until(end + self.phase) - self._until(begin + self.phase)


@dataclass(frozen=True)
class _Steps(Load):
    points: tuple[tuple[float, float], ...]

    def line(self) -> str:
        return "steps " + " ".join(f"{at!r}:{level!r}" for at, level in self.points)

    def integral(self, begin: float, end: float) -> float:
        total = 0.0
        ends = [at for at, _ in self.points[1:]] + [math.inf]
        for (at, level), until in zip(self.points, ends, strict=True):
            total += max(0.0, min(until, end) - max(at, begin)) * level / 100
        return total


@dataclass(frozen=True)
class Follow(Load):
    """CPU time as load; what it comes to is not known beforehand, so there is no truth to ask for."""

    what: str = "cgroup"
    options: dict[str, object] = field(default_factory=dict)

    def line(self) -> str:
        return " ".join(["follow", self.what, *(f"{key}={value}" for key, value in self.options.items())])

    def integral(self, begin: float, end: float) -> float:
        raise ValueError("a load that follows CPU time has no truth of its own")


def constant(level: float) -> Load:
    return _Constant(float(level))


def square(period: float, duty: float = 0.5, level: float = 100, low: float = 0, phase: float = 0) -> Load:
    """``level`` for the first ``duty`` of each ``period``, ``low`` after; begins ``phase`` seconds in."""
    return _Square(float(period), float(duty), float(level), float(low), float(phase))


def steps(points: Iterable[tuple[float, float]]) -> Load:
    """``(seconds, level)`` pairs in order; a level holds until the next pair, before the first it is 0."""
    ordered = tuple((float(at), float(level)) for at, level in points)
    if list(ordered) != sorted(ordered, key=lambda point: point[0]):
        raise ValueError("steps must be given in the order of time")
    return _Steps(ordered)


def follow(
    what: str = "cgroup",
    *,
    cores: float = 1,
    idle: float = 0,
    pid: int | None = None,
    file: Path | None = None,
    scale: float = 1,
) -> Follow:
    """CPU time of the reader's own ``cgroup``, its ``pgrp``, all that is ``visible``, a ``pid`` or a ``file``.

    A file holds busy seconds so far, as a number that is multiplied with ``scale``. So many cores as ``idle`` may be
    busy with housekeeping (probes) without being load.
    """
    options: dict[str, object] = {"cores": cores}
    if idle:
        options["idle"] = idle
    if pid is not None:
        what, options["pid"] = "process", pid
    if file is not None:
        what, options["file"], options["scale"] = "file", file, scale
    return Follow(what, options)
