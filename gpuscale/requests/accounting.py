"""Begin and end of requests: the number in flight, its integral over time, counts and durations.

This is the request path. Where another process may read the numbers at any time, a request costs two lock acquisitions,
two packed stores and two additions. Where nobody can, its begin and its end are only noted, and counted in batches or
when somebody asks: between a framework's cold caches that saves a quarter.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from math import inf
from time import monotonic

from gpuscale.catalogue import DEFAULT_BUCKETS, METHODS, OTHER_METHOD, OVERFLOW_ROUTE
from gpuscale.requests.slab import IN_FLIGHT_RECORD, UNPUBLISHED_SLOT, Slab, SlabFullError

MAX_ROUTES = 500
"""Distinct values of the label ``route``; a template that holds a client's input must not grow without bound."""

FOLD_AT = 128
"""Noted ends that are counted at once, some 60 µs of work."""

_pack_into = IN_FLIGHT_RECORD.pack_into
_KNOWN_METHODS = {method: method for method in METHODS}
_OVERFLOW = (OTHER_METHOD, OVERFLOW_ROUTE, 0)


class RequestAccounting:
    """Counts requests of one process into a slab. Safe to call from any thread.

    ``buckets`` are the upper bounds of the duration histogram in seconds, ascending, without +Inf.
    """

    __slots__ = (
        "_began", "_buffer", "_ended", "_in_flight", "_integral", "_last", "_lock", "_published", "_routes",
        "_sequence", "_series", "_slab", "_slots", "_sum_offset", "buckets", "sharing",
    )  # fmt: skip

    def __init__(self, slab: Slab | None = None, buckets: tuple[float, ...] = DEFAULT_BUCKETS) -> None:
        self.buckets = buckets
        self._sum_offset = len(buckets) + 1
        self._lock = threading.Lock()
        self._slab = slab or Slab()
        self._buffer = self._slab.buffer
        self._slots = self._slab.slots
        self._series: dict[tuple[str, str, int], int] = {}
        self._routes: set[str] = set()
        self._began: deque[float] = deque()
        self._ended: deque[tuple[float, float, str, str, int]] = deque()
        self._in_flight = 0
        self._integral = 0.0
        self._last = monotonic()
        self._published = 0.0
        self._sequence = 0.0
        self.sharing = True
        """Whether another process may read the slab at any time; else :meth:`flush` is enough, and cheaper."""
        self._store()

    @property
    def slab(self) -> Slab:
        """Where the numbers are."""
        return self._slab

    @property
    def in_flight(self) -> int:
        """Requests of this process that began and have not ended."""
        with self._lock:
            return self._in_flight + len(self._began) - len(self._ended)

    def begin(self) -> float:
        """A request was accepted. Returns the instant (CLOCK_MONOTONIC seconds) to hand to :meth:`end`."""
        if not self.sharing:
            now = monotonic()
            self._began.append(now)
            return now
        with self._lock:
            now = monotonic()
            count = self._in_flight
            integral = self._integral = self._integral + count * (now - self._last)
            self._last = now
            self._in_flight = count = count + 1
            sequence = self._sequence = self._sequence + 1.0
            _pack_into(self._buffer, 0, sequence, count, integral, now, sequence)
        return now

    def end(self, started: float, method: str, route: str, status: int) -> None:
        """The request that began at ``started`` ended, at its last body byte or however else."""
        if not self.sharing:
            ended = self._ended
            ended.append((started, monotonic(), method, route, status))
            if len(ended) >= FOLD_AT and self._lock.acquire(blocking=False):
                try:
                    self._fold()
                finally:
                    self._lock.release()
            return
        with self._lock:
            now = monotonic()
            count = self._in_flight
            integral = self._integral = self._integral + count * (now - self._last)
            self._last = now
            self._in_flight = count = count - 1
            sequence = self._sequence = self._sequence + 1.0
            _pack_into(self._buffer, 0, sequence, count, integral, now, sequence)
            self._count(now - started, (method, route, status))

    def abandon(self, started: float, method: str, route: str, status: int) -> None:
        """:meth:`end` for a finalizer, which the garbage collector may run in the middle of anything: in the middle of
        :meth:`end` itself, whose lock it would wait for forever. It is noted, and counted with the next :meth:`flush`.
        """
        self._ended.append((started, monotonic(), method, route, status))

    def flush(self) -> None:
        """Count what was noted, and bring the slab up to date for a reader of this process."""
        with self._lock:
            self._fold()
            self._store()

    def _fold(self) -> None:
        """Count the noted ends and begins, up to now. The lock is held.

        The integral grows by what each was in flight since ``last``: from its begin, and no further than its end.
        """
        ended, began, last = self._ended, self._began, self._last
        ends = len(ended)
        for _ in range(len(began)):  # counted second: whatever ended has begun before
            self._integral -= began.popleft() - last
            self._in_flight += 1
        for _ in range(ends):
            started, end, method, route, status = ended.popleft()
            self._integral += end - last
            self._in_flight -= 1
            self._count(end - started, (method, route, status))
        now = self._last = monotonic()
        self._integral += self._in_flight * (now - last)

    def _count(self, duration: float, labels: tuple[str, str, int]) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._new_series(*labels)
        slots = self._slots
        slots[series + bisect_left(self.buckets, duration)] += 1.0
        slots[series + self._sum_offset] += duration

    def move_to(self, slab: Slab, *, counts: bool = True, fresh: bool = False) -> None:
        """Go on in another slab: with all numbers, or without ``counts`` (they stay in the old one, which is summed
        up) with those in flight alone, or ``fresh`` from zero (in the child of a fork)."""
        if fresh:
            # The lock may have been held by a thread of the parent that does not exist here.
            self._lock = threading.Lock()
            self._began.clear()
            self._ended.clear()
        with self._lock:
            self._fold()
            old = self._slab
            series = self._series
            if not fresh and not counts:
                in_flight, self._in_flight = self._in_flight, 0
                self._store()
                self._in_flight, self._integral, self._published = in_flight, 0.0, 0.0
            self._slab, self._buffer, self._slots = slab, slab.buffer, slab.slots
            self._series, self._routes = {}, set()
            if fresh:
                self._in_flight, self._integral, self._published, self._last = 0, 0.0, 0.0, monotonic()
            elif counts:
                self._copy(old, series)
            self._store()
        if not fresh:
            old.close()

    def _copy(self, old: Slab, series: dict[tuple[str, str, int], int]) -> None:
        moved: dict[int, int] = {}
        for labels, slot in series.items():
            if slot == UNPUBLISHED_SLOT:
                continue
            if slot in moved:  # labels as given, beside those that are known; or those that share the overflow's
                self._series[labels] = moved[slot]
                continue
            new = moved[slot] = self._new_series(*labels)
            for offset in range(self._sum_offset + 1):
                self._slots[new + offset] += old.slots[slot + offset]

    def _store(self) -> None:
        """Write the in-flight record, for readers that go on counting from ``last``; or, where the record is brought up
        to date for each reading, for ones that do not: then an end noted late would take back what they have read.
        """
        integral, last = self._integral, self._last
        if not self.sharing:
            integral = self._published = max(self._published, integral)
            last = inf
        self._sequence += 1.0
        _pack_into(self._buffer, 0, self._sequence, self._in_flight, integral, last, self._sequence)

    def _new_series(self, method: str, route: str, status: int) -> int:
        """First slot for labels that are new to this process; remembered under the labels as given.

        Unknown methods, statuses outside 100-599 and routes beyond the limit share one value each. What
        does not fit into the slab any more shares the overflow's series, which is made first.
        """
        if not self._series and route != OVERFLOW_ROUTE:
            self._new_series(*_OVERFLOW)
        known_method = _KNOWN_METHODS.get(method, OTHER_METHOD)
        known_route = route
        if route not in self._routes:
            if len(self._routes) >= MAX_ROUTES:
                known_route = OVERFLOW_ROUTE
            else:
                self._routes.add(route)
        known_status = status if 100 <= status <= 599 else 0
        known = (known_method, known_route, known_status)
        series = self._series.get(known)
        if series is None:
            label = str(known_status) if known_status else OVERFLOW_ROUTE
            try:
                series = self._slab.allocate((known_method, known_route, label), self._sum_offset + 1)
            except SlabFullError:
                series = self._series.get(_OVERFLOW, UNPUBLISHED_SLOT)
            self._series[known] = series
        if known != (method, route, status) and len(self._series) < 4 * MAX_ROUTES:
            self._series[(method, route, status)] = series
        return series
