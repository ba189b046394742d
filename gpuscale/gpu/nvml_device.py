"""One GPU or MIG instance read through NVML. A figure that cannot be is a failed reading, never clamped."""

from __future__ import annotations

import time
from typing import Any

from gpuscale.gpu.nvml_gpm import GpmMeter
from gpuscale.gpu.processes import own_memory
from gpuscale.gpu.reading import GpuIdentity
from gpuscale.gpu.source import IMPOSSIBLE_VALUE, DeviceLostError, RawReading, RawUtilization

LOST = frozenset((
    "GPU_IS_LOST", "UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH", "GPU_NOT_FOUND",
    "RESET_REQUIRED", "LIBRARY_NOT_FOUND",
))  # fmt: skip
"""After these the source has to be opened anew."""
LACKING = frozenset((
    "NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED",
))  # fmt: skip
"""After these the device is not asked the same again for a while; they are no failed readings."""
ASK_AGAIN = 60.0
"""Seconds after which a device is asked again for what it lacked."""
GPU_UTILIZATION_SAMPLES = 1
TEMPERATURE_GPU = 0
MEMORY_V2 = 0x02000028
EVERY_LINK = 0xFFFFFFFF
PCIE_COUNT_TX_BYTES, PCIE_COUNT_RX_BYTES = 197, 198
NVLINK_THROUGHPUT_DATA_TX, NVLINK_THROUGHPUT_DATA_RX = 138, 139  # KiB
NVLINK_COUNT_XMIT_BYTES, NVLINK_COUNT_RCV_BYTES = 202, 204
TRAFFIC_FIELDS = (
    PCIE_COUNT_TX_BYTES, PCIE_COUNT_RX_BYTES,
    (NVLINK_COUNT_XMIT_BYTES, EVERY_LINK), (NVLINK_COUNT_RCV_BYTES, EVERY_LINK),
    (NVLINK_THROUGHPUT_DATA_TX, EVERY_LINK), (NVLINK_THROUGHPUT_DATA_RX, EVERY_LINK),
)  # fmt: skip
VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""The member of nvmlValue_t by nvmlValueType_t."""
LOOKS_UNTIL_RATES = 3
"""So many looks in which the ring had nothing new while the driver said busy, until the ring is given up."""
HOTTEST, MOST_MILLIWATTS, FASTEST_FAN = 150, 100_000_000, 200
"""Above these a figure cannot be. NVML documents that a fan may exceed 100 %."""


class NvmlDevice:
    """A device of an open :class:`~gpuscale.gpu.nvml.NvmlSource`."""

    def __init__(
        self,
        nvml: Any,
        codes: dict[int, str],
        handle: Any,
        identity: GpuIdentity,
        parent: Any = None,
        gpu_instance: int | None = None,
    ) -> None:
        self.identity = identity
        self._nvml = nvml
        self._codes = codes
        self._handle = handle
        self._parent = parent
        self._lacking: dict[str, float] = {}  # until when a call is not tried again
        self._failures: list[str] = []
        self._dry_looks = 0
        self._gpm = None if gpu_instance is None else GpmMeter(nvml, parent, gpu_instance)

    @property
    def utilization_period(self) -> float:
        """Seconds: the ring wraps after 10, a rate speaks for one driver period (UtilizationRates at ≥ 2 Hz)."""
        return 0.45 if self._gpm is None and "nvmlDeviceGetSamples" in self._lacking else 2.0

    def close(self) -> None:
        """Frees what the device holds in NVML."""
        if self._gpm is not None:
            self._gpm.close()

    # -- utilisation ---------------------------------------------------------------------------------------------

    def read_utilization(self, cursor: int, failures: list[str]) -> RawUtilization | None:
        """From the sample ring, else the last period's rate; from GPM on an instance. See the protocol."""
        self._failures = failures
        if self._gpm is not None:
            measured = self._call("GPM", self._gpm.read)
            if measured is None:
                return None
            return RawUtilization("gpm", percent=measured[0], seconds=measured[1])
        samples = self._samples(cursor)
        if samples:
            self._dry_looks = 0
            recent = cursor == 0 and _is_recent(max(stamp for stamp, _ in samples))
            return RawUtilization("samples", samples, history_is_recent=recent)
        rates = self._call("nvmlDeviceGetUtilizationRates", self._nvml.nvmlDeviceGetUtilizationRates, self._handle)
        if rates is None:
            return None
        if samples is None:
            return RawUtilization("rates", percent=float(rates.gpu))
        return self._dry(cursor, float(rates.gpu))

    def _samples(self, cursor: int) -> list[tuple[int, float]] | None:
        """What is newer than ``cursor``; None where there is no ring."""
        nvml = self._nvml
        answer = self._call(
            "nvmlDeviceGetSamples", nvml.nvmlDeviceGetSamples, self._handle, GPU_UTILIZATION_SAMPLES, cursor,
            quiet=("NOT_FOUND",),
        )  # fmt: skip
        if answer is None:
            return None if "nvmlDeviceGetSamples" in self._lacking else []
        kind, samples = answer
        if not 0 <= kind < len(VALUE_FIELDS):
            self._failures.append(IMPOSSIBLE_VALUE)
            return []
        field = VALUE_FIELDS[kind]
        return [
            (sample.timeStamp, float(getattr(sample.sampleValue, field)))
            for sample in samples
            if sample.timeStamp > cursor
        ]

    def _dry(self, cursor: int, percent: float) -> RawUtilization | None:
        """The ring has nothing new. Some drivers stop filling it while the GPU idles, which the rate confirms; one
        whose clock was set back fills it with stamps that are older than what we saw."""
        if percent == 0:
            self._dry_looks = 0
            return RawUtilization("samples", idle=True)
        self._dry_looks += 1
        if self._dry_looks < LOOKS_UNTIL_RATES:
            return None
        self._dry_looks = 0
        whole = self._samples(0) if cursor else None
        if whole and max(stamp for stamp, _ in whole) < cursor:
            return RawUtilization("samples", whole, rewound=True)
        self._lacking["nvmlDeviceGetSamples"] = time.monotonic() + ASK_AGAIN
        return RawUtilization("rates", percent=percent)

    # -- everything else -----------------------------------------------------------------------------------------

    def read(self) -> RawReading:
        """One reading of all that the device tells. Raises DeviceLostError."""
        nvml, handle = self._nvml, self._handle
        raw = RawReading()
        self._failures = raw.failures
        self._read_memory(raw)
        self._read_temperature(raw)
        raw.own_memory_used_bytes = self._own_memory()
        if self._parent is not None:
            return raw  # the rest is the whole GPU's
        energy = self._call("nvmlDeviceGetTotalEnergyConsumption", nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        raw.energy_millijoules = None if energy is None else int(energy)
        power = self._call("nvmlDeviceGetPowerUsage", nvml.nvmlDeviceGetPowerUsage, handle)
        raw.power_milliwatts = self._possible(power, MOST_MILLIWATTS)
        fan = self._call("nvmlDeviceGetFanSpeed", nvml.nvmlDeviceGetFanSpeed, handle)
        raw.fan_speed_percent = self._possible(fan, FASTEST_FAN)
        self._read_traffic(raw)
        return raw

    def _read_memory(self, raw: RawReading) -> None:
        """Version 2 does not count what the driver reserves as used; version 1 does and is the fallback."""
        get = self._nvml.nvmlDeviceGetMemoryInfo
        memory = self._call("nvmlDeviceGetMemoryInfo_v2", get, self._handle, MEMORY_V2)
        if memory is None and "nvmlDeviceGetMemoryInfo_v2" in self._lacking:
            memory = self._call("nvmlDeviceGetMemoryInfo", get, self._handle)
        if memory is None:
            return
        used, total = int(memory.used), int(memory.total)
        if total <= 0 or used > total:
            self._failures.append(IMPOSSIBLE_VALUE)
            return
        raw.memory_used_bytes, raw.memory_total_bytes = used, total

    def _read_temperature(self, raw: RawReading) -> None:
        nvml = self._nvml
        handle = self._handle if self._parent is None else self._parent
        degrees = None
        if hasattr(nvml, "nvmlDeviceGetTemperatureV"):
            degrees = self._call("nvmlDeviceGetTemperatureV", nvml.nvmlDeviceGetTemperatureV, handle, TEMPERATURE_GPU)
        if degrees is None and self._lacks("nvmlDeviceGetTemperatureV"):
            degrees = self._call("nvmlDeviceGetTemperature", nvml.nvmlDeviceGetTemperature, handle, TEMPERATURE_GPU)
        raw.temperature_celsius = self._possible(degrees, HOTTEST)

    def _read_traffic(self, raw: RawReading) -> None:
        fields = self._call(
            "nvmlDeviceGetFieldValues", self._nvml.nvmlDeviceGetFieldValues, self._handle, TRAFFIC_FIELDS
        )
        if fields is None:
            return
        counts = [self._field(field) for field in fields]
        if all(count is None for count in counts):
            self._lacking["nvmlDeviceGetFieldValues"] = time.monotonic() + ASK_AGAIN
            return
        pcie_out, pcie_in, link_out, link_in, kib_out, kib_in = counts
        if pcie_out is not None and pcie_in is not None:
            raw.pcie_bytes = (pcie_out, pcie_in)
        if link_out is not None and link_in is not None:
            raw.nvlink_bytes = (link_out, link_in)
        elif kib_out is not None and kib_in is not None:
            raw.nvlink_bytes = (kib_out * 1024, kib_in * 1024)

    def _field(self, field: Any) -> int | None:
        if field.nvmlReturn != 0:
            reason = self._codes.get(field.nvmlReturn, f"ERROR_{field.nvmlReturn}")
            if reason in LOST:
                raise DeviceLostError(reason)
            if reason not in LACKING and reason != "INVALID_ARGUMENT":  # so is an unknown field called
                self._failures.append(reason)
            return None
        if not 0 <= field.valueType < len(VALUE_FIELDS):
            self._failures.append(IMPOSSIBLE_VALUE)
            return None
        count = int(getattr(field.value, VALUE_FIELDS[field.valueType]))
        return count if count >= 0 else None

    def _own_memory(self) -> int | None:
        """Memory of the processes of this pod, or None while it is not known whose PIDs the driver reports."""
        nvml = self._nvml
        entries: list[tuple[int, int | None]] = []
        known = False
        for kind in ("Compute", "Graphics", "MPSCompute"):
            listed = self._processes(f"nvmlDeviceGet{kind}RunningProcesses", nvml)
            if listed is not None:
                known = True
                entries += listed
        if not known:
            return None
        return own_memory(entries)

    def _processes(self, name: str, nvml: Any) -> list[tuple[int, int | None]] | None:
        """(PID, bytes) of one kind of process, by the newest version of the call that the driver has."""
        for version in ("_v3", "_v2"):
            call = getattr(nvml, name + version, None)
            if call is None:
                continue
            listed = self._call(name + version, call, self._handle)
            if listed is not None:
                return [(process.pid, process.usedGpuMemory) for process in listed]
            if name + version not in self._lacking:
                return None
        return None

    # -- calls ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, function: Any, *arguments: Any, quiet: tuple[str, ...] = ()) -> Any:
        """The answer, or None: lacking, or failed and noted. Raises DeviceLostError."""
        if self._lacking and self._lacks(name):
            return None
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            if error.value == 0:
                return None  # nvidia-ml-py raises for some empty successes
            reason = self._codes.get(error.value, f"ERROR_{error.value}")
            if reason in LOST or (reason == "NOT_FOUND" and self._parent is not None and not quiet):
                raise DeviceLostError(reason) from None
            if reason in LACKING:
                self._lacking[name] = time.monotonic() + ASK_AGAIN
            elif reason not in quiet:
                self._failures.append(reason)
            return None

    def _lacks(self, name: str) -> bool:
        until = self._lacking.get(name)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        del self._lacking[name]
        return False

    def _possible(self, value: Any, most: float) -> float | None:
        if value is None:
            return None
        if not 0 <= value <= most:
            self._failures.append(IMPOSSIBLE_VALUE)
            return None
        return float(value)


def _is_recent(stamp: int) -> bool:
    """Whether a driver's stamp (microseconds) is of the last seconds by any clock that drivers use."""
    clocks = (time.CLOCK_REALTIME, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC)
    return any(-0.5 <= time.clock_gettime(clock) - stamp / 1e6 <= 2.5 for clock in clocks)
