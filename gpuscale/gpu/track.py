"""What the sampler knows of one GPU over time: its counters, its last good reading, its failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpuscale.gpu.counters import MOST_BYTES_PER_SECOND, MOST_WATTS, MeanPower, RunningCount
from gpuscale.gpu.reading import GpuIdentity, GpuReading, UtilizationMethod, stale
from gpuscale.gpu.source import IMPOSSIBLE_VALUE, DeviceLostError, GpuDevice, RawReading
from gpuscale.gpu.utilization import BusyIntegral

TRAFFIC = (("pcie_bytes", "pcie"), ("nvlink_bytes", "nvlink"))
DIRECTIONS = ("transmit", "receive")
EMPTY_READS = 3
"""Readings in a row that brought nothing, until the device counts as lost."""


class Track:
    """One UUID's history. It outlives the device's handle and, by ``dump``, the process that samples.

    The sampler's thread writes; ``reading`` may be called from any thread: what it reads is replaced, never changed
    in place.
    """

    def __init__(self, identity: GpuIdentity, window: float, restored: Mapping[str, Any] | None = None) -> None:
        state = restored or {}
        self.identity = identity
        self.device: GpuDevice | None = None
        self.lost_since: float | None = None
        self.lost_reason = ""
        self.errors: Mapping[str, int] = dict(state.get("errors", {}))
        self._integral = BusyIntegral(
            window, int(state.get("cursor", 0)), float(state.get("busy", 0.0)), float(state.get("observed", 0.0))
        )
        self._power = MeanPower()
        self._empty_reads = 0
        self._reads = 0
        self._counts: dict[str, RunningCount] = {}
        for name, most in _COUNT_LIMITS.items():
            self._counts[name] = RunningCount(most, *state.get("counts", {}).get(name, ()))
        values = GpuReading(identity, up=False, **state.get("values", {}))
        #: (values, when they were read, when utilisation was), replaced at once so that they belong together.
        self._last: tuple[GpuReading, float | None, float | None] = (
            values,
            state.get("read_at"),
            state.get("utilization_at"),
        )
        #: Host time before which utilisation need not be looked at again.
        self.due = 0.0

    @property
    def method(self) -> UtilizationMethod | None:
        """How utilisation was obtained last."""
        return self._last[0].utilization_method

    @property
    def settled(self) -> bool:
        """Whether it is clear by now how utilisation is obtained: GPM needs two looks, others may fail once."""
        return self.method is not None or self._reads >= 3

    def count_errors(self, reasons: list[str]) -> None:
        """Adds failed calls to this GPU's counters."""
        if reasons:
            errors = dict(self.errors)
            for reason in reasons:
                errors[reason] = errors.get(reason, 0) + 1
            self.errors = errors

    def look(self, at: float) -> bool:
        """Reads and integrates the utilisation; whether there was any. Raises DeviceLostError."""
        values, looked_at = self._look(at)
        before, read_at, _ = self._last
        self._last = (replace(before, **values), read_at, looked_at)
        return bool(values)

    def read(self, at: float) -> bool:
        """Reads everything; whether it was a good reading. Raises DeviceLostError."""
        values, looked_at = self._look(at)
        try:
            raw = self._present().read()
        except DeviceLostError as lost:
            self.count_errors([lost.reason])
            raise
        taken = self._take(raw, at)
        self.count_errors(raw.failures)
        if raw.empty and not values:
            self._empty_reads += 1
            if self._empty_reads >= EMPTY_READS:  # every call fails, whatever the code: open it all anew
                raise DeviceLostError(raw.failures[-1] if raw.failures else "NO_DATA")
            return False
        self._empty_reads = 0
        self._reads += 1
        self._last = (replace(self._last[0], **values, **taken), at, looked_at)
        self.lost_since = None
        return True

    def _look(self, at: float) -> tuple[dict[str, Any], float | None]:
        """The values of utilisation, {} if there were none, and when it was last known."""
        device = self._present()
        self.due = at + device.utilization_period
        failures: list[str] = []
        looked_at = self._last[2]
        values: dict[str, Any] = {}
        try:
            raw = device.read_utilization(self._integral.query_cursor, failures)
        except DeviceLostError as lost:
            self.count_errors([*failures, lost.reason])
            raise
        if raw is not None:
            bad = self._integral.add(raw, at)
            failures += [IMPOSSIBLE_VALUE] * bad
            if raw.idle or (raw.method == "samples" and bad < len(raw.samples)) or (not raw.samples and not bad):
                looked_at = at
            values = {
                "utilization_method": raw.method,
                "duty_cycle": self._integral.duty_cycle(),
                "busy_seconds": self._integral.busy_seconds,
                "observed_seconds": self._integral.observed_seconds,
            }
        self.count_errors(failures)
        return values, looked_at

    def reading(self, now: float, staleness: float) -> GpuReading:
        """The last good reading as it is to be published at ``now``."""
        values, read_at, looked_at = self._last
        age = None if read_at is None else max(0.0, now - read_at)
        if age is None or age > staleness or self.lost_since is not None:
            return stale(self.identity, age, self.errors)
        if looked_at is None or now - looked_at > staleness:
            values = replace(values, duty_cycle=None, busy_seconds=None, observed_seconds=None, utilization_method=None)
        return replace(values, up=True, sample_age_seconds=age, errors=self.errors)

    def dump(self) -> dict[str, Any]:
        """JSON types from which ``restored`` continues."""
        last, read_at, utilization_at = self._last
        values = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in last.__dict__.items()
            if value is not None and name not in ("identity", "up", "sample_age_seconds", "errors")
        }
        return {
            "identity": dict(self.identity.__dict__),
            "cursor": self._integral.cursor,
            "busy": self._integral.busy_seconds,
            "observed": self._integral.observed_seconds,
            "counts": {name: [count.value, count.raw, count.at] for name, count in self._counts.items()},
            "errors": dict(self.errors),
            "read_at": read_at,
            "utilization_at": utilization_at,
            "values": values,
        }

    def _present(self) -> GpuDevice:
        if self.device is None:
            raise DeviceLostError(self.lost_reason or "GPU_NOT_FOUND")
        return self.device

    def _take(self, raw: RawReading, at: float) -> dict[str, Any]:
        """The published values of a raw reading; the counters are moved on."""
        values: dict[str, Any] = {name: getattr(raw, name) for name in _PLAIN}
        energy = self._count("energy", raw.energy_millijoules, at, raw)
        values["energy_joules"] = None if energy is None else energy / 1000
        mean_power = None if energy is None else self._power.add(at, energy)
        values["power_milliwatts"] = raw.power_milliwatts if mean_power is None else mean_power
        for field, name in TRAFFIC:
            pair = getattr(raw, field) or (None, None)
            counts = [self._count(f"{name}_{way}", value, at, raw) for way, value in zip(DIRECTIONS, pair, strict=True)]
            known = all(count is not None for count in counts)
            values[field] = dict(zip(DIRECTIONS, counts, strict=True)) if known else None
        return values

    def _count(self, name: str, raw: int | None, at: float, reading: RawReading) -> float | None:
        if raw is None:
            return None
        if not self._counts[name].add(raw, at):
            reading.failures.append(IMPOSSIBLE_VALUE)
            return None
        return self._counts[name].value


_PLAIN = (
    "memory_used_bytes", "memory_total_bytes", "own_memory_used_bytes", "temperature_celsius", "fan_speed_percent",
)  # fmt: skip
_COUNT_LIMITS: dict[str, float] = {
    "energy": MOST_WATTS * 1000,
    **{f"{name}_{way}": MOST_BYTES_PER_SECOND for _, name in TRAFFIC for way in DIRECTIONS},
}
