"""A simulated GPU that follows this process group's own CPU time. Chosen only explicitly; every name says so."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from gpuscale.errors import SourceUnavailableError
from gpuscale.gpu.reading import GpuIdentity
from gpuscale.gpu.source import Enumeration, RawReading, RawUtilization

NAME = "simulated GPU (process CPU time)"
IDLE_WATTS, BUSY_WATTS = 30.0, 250.0
IDLE_CELSIUS, BUSY_CELSIUS = 35.0, 75.0
WARM_UP = 20.0
"""Seconds in which the temperature goes most of the way."""
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class SimulatedSource:
    """One GPU: busy as the CPU time of the process group is, in shares of the cores that it may use."""

    name = "simulated"

    def open(self) -> None:
        """Needs /proc. Raises SourceUnavailableError where there is none."""
        if not os.path.exists("/proc/self/stat"):
            raise SourceUnavailableError("NOT_SUPPORTED", "the simulated GPU needs Linux's /proc")

    def devices(self) -> Enumeration:
        """The one device, the same for every worker of a server."""
        return Enumeration((SimulatedDevice(os.getpgrp()),), decided_by="simulated")

    def close(self) -> None:
        """Nothing to give back."""


class SimulatedDevice:
    """Utilisation from CPU time, memory from resident size, temperature and power from the load."""

    utilization_period = 2.0

    def __init__(self, group: int, proc: Path = Path("/proc")) -> None:
        identity = uuid.uuid5(uuid.NAMESPACE_DNS, "simulated.gpuscale")
        self.identity = GpuIdentity(f"GPU-{identity}", NAME, "0")
        self._group = group
        self._proc = proc
        self._cores = float(len(os.sched_getaffinity(0)))
        self._seen: tuple[float, float] | None = None  # (time, CPU seconds)
        self._times: dict[str, float] = {}
        self._ended = 0.0
        self._resident = 0
        self._load = 0.0
        self._celsius = IDLE_CELSIUS
        self._millijoules = 0.0

    def read_utilization(self, cursor: int, failures: list[str]) -> RawUtilization | None:
        """The mean since the last look, as a device with rates over a longer period would say it."""
        del cursor, failures
        at, seconds = time.monotonic(), self._cpu_seconds()
        before, self._seen = self._seen, (at, seconds)
        if before is None or at - before[0] < 1e-3:
            return None
        elapsed = at - before[0]
        self._load = min(1.0, max(0.0, seconds - before[1]) / elapsed / self._cores)
        goal = IDLE_CELSIUS + self._load * (BUSY_CELSIUS - IDLE_CELSIUS)
        self._celsius += (goal - self._celsius) * min(1.0, elapsed / WARM_UP)
        self._millijoules += 1000 * self._watts() * elapsed
        return RawUtilization("rates", percent=100 * self._load, seconds=elapsed)

    def read(self) -> RawReading:
        """Figures that are plausible for the load."""
        total = os.sysconf("SC_PHYS_PAGES") * _PAGE
        return RawReading(
            memory_used_bytes=min(self._resident, total),
            memory_total_bytes=total,
            own_memory_used_bytes=min(self._resident, total),
            temperature_celsius=round(self._celsius, 1),
            power_milliwatts=1000 * self._watts(),
            energy_millijoules=int(self._millijoules),
        )

    def _watts(self) -> float:
        return IDLE_WATTS + self._load * (BUSY_WATTS - IDLE_WATTS)

    def _cpu_seconds(self) -> float:
        """CPU time of the group so far, of members that ended too; notes the resident size beside it."""
        times: dict[str, float] = {}
        resident = 0
        for pid in os.listdir(self._proc):
            if not pid.isdigit():
                continue
            try:
                fields = (self._proc / pid / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self._group:  # from the state on, which is the third field of proc(5)
                times[pid] = (int(fields[11]) + int(fields[12])) / _TICK
                resident += int(fields[21]) * _PAGE
        for pid, seconds in self._times.items():
            if times.get(pid, -1.0) < seconds:
                self._ended += seconds
        self._times = times
        self._resident = resident
        return self._ended + sum(times.values())
