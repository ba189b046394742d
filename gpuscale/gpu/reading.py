"""What a GPU is to gpuscale: identities, readings, snapshots. Plain data, no driver, no thread.

A value that is not known is ``None`` here and absent from every publication; it is never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

UtilizationMethod = Literal["samples", "rates", "gpm"]
"""How utilisation is obtained: the driver's sample ring, its last period's rate, or GPM on MIG."""


@dataclass(frozen=True)
class GpuIdentity:
    """A GPU or MIG instance. Two readings belong to one device if and only if their UUIDs are equal."""

    uuid: str
    name: str
    """Product name; a MIG instance's profile; a simulated device says ``simulated`` in it."""
    minor_number: str
    """Of ``/dev/nvidiaN``; a MIG instance has its parent's. A string, since it is a label."""


@dataclass(frozen=True)
class GpuReading:
    """The last good reading of one GPU with everything that was integrated until then."""

    identity: GpuIdentity
    up: bool
    """Whether the reading is fresh. While it is not, every value is ``None``, the counters too: one that
    stands still reads as an idle GPU."""
    sample_age_seconds: float | None = None
    duty_cycle: float | None = None
    """Percent of the last window (10 s by default) in which a kernel ran."""
    busy_seconds: float | None = None
    """Counter: seconds in which a kernel ran, integrated from the driver's samples."""
    observed_seconds: float | None = None
    """Counter: seconds of which the utilisation is known. ``busy / observed`` is the mean of what was seen, so that
    a gap in the samples is not taken for idleness."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    own_memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_milliwatts: float | None = None
    energy_joules: float | None = None
    """Counter, where the device has one."""
    fan_speed_percent: float | None = None
    pcie_bytes: Mapping[str, float] | None = None
    """Counters by direction: ``transmit``, ``receive``."""
    nvlink_bytes: Mapping[str, float] | None = None
    utilization_method: UtilizationMethod | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed readings so far, by NVML's error name without its prefix (``GPU_IS_LOST``)."""


@dataclass(frozen=True)
class GpuSnapshot:
    """All GPUs of this pod at one moment, as the sampler publishes it."""

    source: str
    """``nvml``, ``simulated`` or ``none`` (switched off)."""
    gpus: tuple[GpuReading, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failures that belong to no single device (initialisation, enumeration), by reason."""
    decided_by: str = ""
    """What decided which GPUs are this pod's (``nvml``, ``visible-devices``, ``process-namespace`` …)."""
    why_empty: str = ""
    """One sentence for people when there is no GPU."""
    alive: bool = True
    """False when the sampler is dead or stuck in a call for longer than the staleness limit."""
    lost_for_good: bool = False
    """True when devices were lost and only a new container can bring them back."""

    @property
    def num_devices(self) -> int:
        """GPUs of this pod that can be read now."""
        return sum(1 for gpu in self.gpus if gpu.up)

    @property
    def utilization_methods(self) -> str:
        """The methods in use, joined by a comma: the label of ``gpuscale_info``."""
        methods = {gpu.utilization_method for gpu in self.gpus if gpu.utilization_method}
        return ",".join(sorted(methods))


def snapshot_to_json(snapshot: GpuSnapshot) -> dict[str, Any]:
    """A snapshot as JSON types, for the other workers of a pod."""
    raw: dict[str, Any] = dict(snapshot.__dict__)
    raw["errors"] = dict(snapshot.errors)
    raw["gpus"] = [_reading_to_json(gpu) for gpu in snapshot.gpus]
    return raw


def snapshot_from_json(raw: Mapping[str, Any]) -> GpuSnapshot:
    """The inverse of :func:`snapshot_to_json`."""
    values = dict(raw)
    values["gpus"] = tuple(GpuReading(**{**gpu, "identity": GpuIdentity(**gpu["identity"])}) for gpu in values["gpus"])
    return GpuSnapshot(**values)


def _reading_to_json(reading: GpuReading) -> dict[str, Any]:
    raw: dict[str, Any] = dict(reading.__dict__)
    raw["identity"] = dict(reading.identity.__dict__)
    for name in ("pcie_bytes", "nvlink_bytes", "errors"):
        if raw[name] is not None:
            raw[name] = dict(raw[name])
    return raw


def stale(identity: GpuIdentity, age: float | None, errors: Mapping[str, int]) -> GpuReading:
    """A GPU whose last good reading was ``age`` seconds ago, too long for any of its values (None: there was none)."""
    return GpuReading(identity, up=False, sample_age_seconds=age, errors=errors)


def aged(snapshot: GpuSnapshot, seconds: float, staleness: float) -> GpuSnapshot:
    """A snapshot as it looks ``seconds`` after it was taken: older, and past the limit without values."""
    gpus = []
    for gpu in snapshot.gpus:
        age = None if gpu.sample_age_seconds is None else gpu.sample_age_seconds + seconds
        fresh = age is None or age <= staleness
        gpus.append(replace(gpu, sample_age_seconds=age) if fresh else stale(gpu.identity, age, gpu.errors))
    return replace(snapshot, gpus=tuple(gpus))
