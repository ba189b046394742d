"""When the load is on, and how long that was: arithmetic on seconds of CLOCK_MONOTONIC. No GPU, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

DUTIES = (0, 25, 50, 75, 100)
PERIOD = 0.23
"""Seconds from one burst to the next: no multiple of the driver's sample period (1/6 to 1 s)."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Slot:
    """One process's share of each period."""

    offset: float
    """Seconds after the period's start."""
    length: float
    """Seconds."""


def slots(duty: float, processes: int, period: float = PERIOD) -> list[Slot]:
    """The processes' slots, which together cover ``duty`` percent of each period.

    Two processes take two thirds each, so that the middle third is shared: a reader that adds processes up, or that
    sees one of them only, is wrong by a third. Raises ValueError for another number of processes or duty.
    """
    if not 0 <= duty <= 100:
        raise ValueError(f"duty must be 0 to 100 percent, not {duty}")
    busy = period * duty / 100
    if processes == 1:
        return [Slot(0.0, busy)]
    if processes == 2:
        return [Slot(0.0, busy * 2 / 3), Slot(busy / 3, busy * 2 / 3)]
    raise ValueError(f"processes must be 1 or 2, not {processes}")


def bursts(begin: float, end: float, slot: Slot, period: float = PERIOD) -> Iterator[Interval]:
    """When a process is to be busy between ``begin`` and ``end``; a slot as long as the period is one burst."""
    if slot.length <= 0:
        return
    if slot.length >= period:
        yield begin, end
        return
    number = 0
    while (start := begin + number * period + slot.offset) < end:
        yield start, min(start + slot.length, end)
        number += 1


class Engine(Protocol):
    """What is kept busy."""

    def begin(self) -> None:
        """A burst begins."""
        ...

    def launch(self) -> None:
        """Queues one piece of work; waits while enough is queued."""
        ...

    def finish(self) -> float:
        """Waits until all is done; the seconds from ``begin`` by the device's own clock."""
        ...


def drive(
    plan: Iterable[Interval],
    engine: Engine,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[Interval], float]:
    """Keeps ``engine`` busy as planned: when it truly was, and the sum of its own seconds.

    A burst that was missed altogether (the process was not scheduled) is left out, not made up for.
    """
    done: list[Interval] = []
    device_seconds = 0.0
    for start, stop in plan:
        if (wait := start - clock()) > 0:
            sleep(wait)
        if (first := clock()) >= stop:
            continue
        engine.begin()
        while clock() < stop:
            engine.launch()
        device_seconds += engine.finish()
        done.append((first, clock()))
    return done, device_seconds


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals in order that cover the same times."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def busy_between(intervals: Iterable[Interval], begin: float, end: float) -> float:
    """Seconds from ``begin`` to ``end`` in which at least one interval was on."""
    return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in union(intervals))


def area(points: Sequence[tuple[float, float]], begin: float, end: float) -> float | None:
    """The trapezoids under (time, value) points, extended to ``end - begin`` by their mean; None for under two."""
    if len(points) < 2:
        return None
    pairs = zip(points, points[1:], strict=False)
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
    return total / (points[-1][0] - points[0][0]) * (end - begin)
