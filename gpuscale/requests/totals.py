"""Sums of requests over the workers of a pod, read from their slabs."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from gpuscale.requests.loop_lag import read_lag
from gpuscale.requests.slab import Slab, SlabReader, read_in_flight

RequestLabels = tuple[str, str, str]
DurationLabels = tuple[str, str]


@dataclass
class RequestTotals:
    """What the request series say. ``durations`` holds counts per bucket (+Inf last) and the sum in seconds."""

    in_flight: float = 0.0
    in_flight_seconds: float = 0.0
    requests: dict[RequestLabels, float] = field(default_factory=dict)
    durations: dict[DurationLabels, list[float]] = field(default_factory=dict)
    loop_lag: float | None = None

    def add(self, other: RequestTotals) -> None:
        """Add another worker's numbers; of the lags the worst counts."""
        self.in_flight += other.in_flight
        self.in_flight_seconds += other.in_flight_seconds
        for labels, count in other.requests.items():
            self.requests[labels] = self.requests.get(labels, 0.0) + count
        for key, values in other.durations.items():
            self._add_duration(key, values)
        lags = [lag for lag in (self.loop_lag, other.loop_lag) if lag is not None]
        self.loop_lag = max(lags, default=None)

    def _add_duration(self, key: DurationLabels, values: list[float]) -> None:
        mine = self.durations.get(key)
        if mine is None or len(mine) != len(values):
            self.durations[key] = list(values)
        else:
            self.durations[key] = [a + b for a, b in zip(mine, values, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The counters, as JSON types; what is in flight and lags die with their worker."""
        return {
            "in_flight_seconds": self.in_flight_seconds,
            "requests": [[*labels, count] for labels, count in self.requests.items()],
            "durations": [[*labels, values] for labels, values in self.durations.items()],
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RequestTotals:
        """The inverse of :meth:`to_json`."""
        return cls(
            in_flight_seconds=raw["in_flight_seconds"],
            requests={(method, route, status): count for method, route, status, count in raw["requests"]},
            durations={(method, route): values for method, route, values in raw["durations"]},
        )


def read_totals(slab: Slab | SlabReader, now: float | None = None) -> RequestTotals:
    """The numbers of one worker at ``now`` (CLOCK_MONOTONIC seconds)."""
    now = monotonic() if now is None else now
    in_flight = read_in_flight(slab)
    totals = RequestTotals(in_flight.number, in_flight.integral_at(now), loop_lag=read_lag(slab.slots, now))
    for slot, size, labels in list(slab.keys):
        run: memoryview[float] = slab.slots[slot : slot + size]
        values = list(run)
        totals.requests[labels] = sum(values[:-1])
        totals._add_duration(labels[:2], values)
    return totals
