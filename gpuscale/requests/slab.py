"""Numbers in memory that other processes can read: float64 slots with a list of what each one means.

A worker of a pre-fork server writes its numbers here, and whichever worker serves the metrics endpoint reads
them. The layout (in slots of 8 bytes):

====== ==========================================================================================
0-4    the in-flight record: sequence, in flight, integral (s), time of the last event, sequence
5      when the event loop should tick next (CLOCK_MONOTONIC seconds), 0 without a loop
8-39   the worst lag of each of the last seconds: 16 pairs of (second, lag)
64-135 where requests are counted that nobody can be told of: not even the overflow's series fitted
136-   one histogram per method, route and status, in the order in which they were first seen
====== ==========================================================================================

Slots never move, so a reader needs no lock. A slot is written by one aligned store; what must be read together
(the in-flight record) carries its sequence number at both ends.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

SLOTS = 65536
UNPUBLISHED_SLOT = 64
FIRST_SERIES_SLOT = 136
STEP = 65536
"""Bytes of a file that are reserved at a time, lest a full disk (or /dev/shm) kill the process at a store."""
LOOP_DUE_SLOT = 5
LAG_SLOT = 8
LAG_SECONDS = 16
IN_FLIGHT_RECORD = struct.Struct("@5d")


class SeriesKey(NamedTuple):
    """A histogram's run of ``size`` slots: counts per bucket (not cumulative), that of +Inf, the sum in seconds."""

    slot: int
    size: int
    labels: tuple[str, str, str]
    """Method, route, status."""


class InFlight(NamedTuple):
    """``integral`` is in request-seconds up to the instant ``last`` (CLOCK_MONOTONIC seconds).

    ``last`` is infinite where the owner brings the record up to date for each reading.
    """

    number: float
    integral: float
    last: float

    def integral_at(self, now: float) -> float:
        """The integral at ``now``: those in flight have been so since the last event."""
        return self.integral + self.number * max(0.0, now - self.last)


class SlabFullError(Exception):
    """There is no room for another series, in the slab or on the disk."""


class Slab:
    """One process's numbers; with a path they are in a file that other processes map, else in its own memory."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.keys: list[SeriesKey] = []
        self._next = FIRST_SERIES_SLOT
        self._reserved = STEP
        self._keys_file: int | None = None
        self._file: int | None = None
        if path is None:
            self.buffer: bytearray | mmap.mmap = bytearray(SLOTS * 8)
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
            os.ftruncate(self._file, SLOTS * 8)
            os.posix_fallocate(self._file, 0, STEP)
            self.buffer = mmap.mmap(self._file, SLOTS * 8)
            self._keys_file = os.open(keys_path(path), flags | os.O_APPEND, 0o600)
        self.slots = memoryview(self.buffer).cast("d")

    @property
    def file_descriptor(self) -> int:
        """Of the mapped file; whoever holds a lock on it owns the slab."""
        if self._file is None:
            raise ValueError("a slab in private memory has no file")
        return self._file

    def allocate(self, labels: tuple[str, str, str], size: int) -> int:
        """The first of ``size`` zeroed slots for a new series. Raises SlabFullError."""
        slot = self._next
        if slot + size > SLOTS:
            raise SlabFullError
        key = SeriesKey(slot, size, labels)
        if self._file is not None:
            self._publish(key)
        self._next += size
        self.keys.append(key)
        return slot

    def _publish(self, key: SeriesKey) -> None:
        assert self._file is not None
        assert self._keys_file is not None
        end = (key.slot + key.size) * 8
        line = json.dumps(key).encode() + b"\n"
        try:
            while end > self._reserved:
                os.posix_fallocate(self._file, self._reserved, STEP)
                self._reserved += STEP
            # One write per line: a reader never takes half a line for a whole one.
            written = os.write(self._keys_file, line)
        except OSError:
            raise SlabFullError from None
        if written < len(line):
            # The disk is full. Half a line is the last: what came after it would be taken for its end.
            self._next = SLOTS
            raise SlabFullError

    def close(self) -> None:
        """Give the files back; their contents stay for whoever sums up the dead.

        The memory stays as long as somebody holds it: another thread may be about to write its last number.
        """
        for descriptor in (self._file, self._keys_file):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._keys_file = None


class SlabReader:
    """Another process's slab, read-only. ``OSError`` or ``ValueError`` when the files are not whole."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.keys: list[SeriesKey] = []
        self._keys_read = 0
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), SLOTS * 8, access=mmap.ACCESS_READ)
        self.slots = memoryview(self._map).cast("d")
        self.buffer: mmap.mmap = self._map

    def refresh_keys(self) -> None:
        """Learn the series that were added since the last call."""
        path = keys_path(self.path)
        if os.stat(path).st_size == self._keys_read:
            return
        with open(path, "rb") as file:
            file.seek(self._keys_read)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._keys_read += len(complete)
        self.keys.extend(_parse_keys(complete))

    def close(self) -> None:
        """Give the memory back, now or (where it was being read when this process was forked) with the reader."""
        try:
            self.slots.release()
            self._map.close()
        except BufferError:
            pass


def _parse_keys(lines: bytes) -> Iterator[SeriesKey]:
    for line in lines.splitlines():
        slot, size, (method, route, status) = json.loads(line)
        yield SeriesKey(slot, size, (method, route, status))


def keys_path(slab_path: str) -> str:
    """The file beside a slab's that lists its series."""
    return slab_path.removesuffix(".slab") + ".keys"


def read_in_flight(slab: Slab | SlabReader) -> InFlight:
    """The in-flight record, consistent although its writer may be at work on another processor.

    The writer stores front sequence, values, back sequence in this order; back is read first here, so equal
    sequences mean that no write came between. A writer that died in the middle leaves them unequal for good:
    after some tries its numbers are taken as they are.
    """
    record = IN_FLIGHT_RECORD
    number = integral = last = 0.0
    for _ in range(64):
        back = slab.slots[4]
        front, number, integral, last, _ = record.unpack_from(slab.buffer, 0)
        if front == back == slab.slots[0]:
            break
    return InFlight(number, integral, last)
