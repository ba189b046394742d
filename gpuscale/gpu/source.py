"""The protocol of a GPU source: what the sampler asks of NVML, of the simulation and of tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gpuscale.errors import ConfigurationError, GpuscaleError, SourceUnavailableError
from gpuscale.gpu.reading import GpuIdentity, UtilizationMethod

if TYPE_CHECKING:
    from gpuscale.gpu.ownership import Decision

IMPOSSIBLE_VALUE = "IMPOSSIBLE_VALUE"
"""Reason of a reading that the driver called good and that cannot be: 101 %, more memory used than there is."""


class DeviceLostError(GpuscaleError):
    """The device, or the driver under it, is gone: its source has to be opened anew."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the GPU cannot be read: {reason}")
        self.reason = reason


@dataclass
class RawUtilization:
    """What one look at a device's utilisation brought. Exactly one of the three forms is filled in."""

    method: UtilizationMethod
    samples: Sequence[tuple[int, float]] = ()
    """(time stamp in microseconds of the driver's clock, percent), in any order, duplicates included."""
    idle: bool = False
    """The sample ring has nothing new, and the driver says that the last period was idle."""
    percent: float | None = None
    """Mean of the last period (``rates``) or of the last ``seconds`` (``gpm``)."""
    seconds: float = 0.0
    history_is_recent: bool = False
    """The newest sample's stamp agrees with one of this machine's clocks, so its age is known."""
    rewound: bool = False
    """The driver's clock went back: ``samples`` is the whole ring, all of it before the cursor."""


@dataclass
class RawReading:
    """One reading of one device, as the driver gave it. What was not to be had is ``None``."""

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    own_memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_milliwatts: float | None = None
    """The driver's own figure; the sampler prefers the energy counter's slope."""
    energy_millijoules: int | None = None
    """Running since the driver was loaded."""
    fan_speed_percent: float | None = None
    pcie_bytes: tuple[int, int] | None = None
    """Running counts (transmit, receive); they may wrap."""
    nvlink_bytes: tuple[int, int] | None = None
    failures: list[str] = field(default_factory=list)
    """The reasons of the calls that failed, by NVML's error name."""

    @property
    def empty(self) -> bool:
        """Whether nothing at all was read."""
        return all(value is None for name, value in self.__dict__.items() if name != "failures")


class GpuDevice(Protocol):
    """A device of an open source. The sampler's thread is the only one to call it."""

    @property
    def identity(self) -> GpuIdentity: ...

    @property
    def utilization_period(self) -> float:
        """Seconds after which utilisation should be looked at again, at the latest."""
        ...

    def read_utilization(self, cursor: int, failures: list[str]) -> RawUtilization | None:
        """What happened since ``cursor`` (a stamp that was integrated, 0 for the whole ring); None: nothing to
        be had now. Appends the reasons of failed calls to ``failures``; raises DeviceLostError."""
        ...

    def read(self) -> RawReading:
        """Everything else. Raises DeviceLostError."""
        ...


@dataclass
class Enumeration:
    """The devices of this pod that can be opened now, and what to say about the others."""

    devices: Sequence[GpuDevice] = ()
    failures: Sequence[str] = ()
    """Why devices that were counted could not be opened, one reason each."""
    decided_by: str = ""
    why_empty: str = ""
    outdated: Callable[[], bool] = field(default=lambda: False)
    """Whether other devices than these are ours by now. May take as long as finding out did."""


class GpuSource(Protocol):
    """Where GPUs come from."""

    @property
    def name(self) -> str: ...

    def open(self) -> None:
        """Makes the source ready in this process. Raises SourceUnavailableError."""
        ...

    def devices(self) -> Enumeration:
        """Finds this pod's devices. Raises SourceUnavailableError."""
        ...

    def close(self) -> None:
        """Gives everything back; harmless when not open. Never raises."""
        ...


class NoSource:
    """GPU series switched off."""

    name = "none"

    def open(self) -> None:
        """Never possible."""
        raise SourceUnavailableError("SWITCHED_OFF", "GPU series are switched off (gpu=none)")

    def devices(self) -> Enumeration:
        """None."""
        return Enumeration(why_empty="GPU series are switched off (gpu=none)")

    def close(self) -> None:
        """Nothing to do."""


def create_source(gpu: str, ownership: Callable[[], Decision] | None = None) -> GpuSource:
    """The source that the setting ``gpu`` names: ``nvml``, ``simulated`` or ``none``.

    ``ownership`` says which devices are this pod's, each time the source is opened; by default those that NVML
    shows to this process, narrowed by NVIDIA_VISIBLE_DEVICES. Raises ConfigurationError for another name.
    """
    if gpu == "nvml":
        from gpuscale.gpu.nvml import NvmlSource
        from gpuscale.gpu.ownership import in_process

        return NvmlSource(ownership or in_process)
    if gpu == "simulated":
        from gpuscale.gpu.simulated import SimulatedSource

        return SimulatedSource()
    if gpu == "none":
        return NoSource()
    raise ConfigurationError(f"gpu must be one of nvml, simulated, none, not {gpu!r}")
