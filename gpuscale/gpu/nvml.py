"""GPUs through NVML (nvidia-ml-py): opening, finding this pod's devices, giving it all back."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpuscale.errors import SourceUnavailableError
from gpuscale.gpu.nvml_device import NvmlDevice
from gpuscale.gpu.reading import GpuIdentity
from gpuscale.gpu.source import Enumeration

if TYPE_CHECKING:
    from gpuscale.gpu.ownership import Candidate, Decision

REMEDIES = {
    "LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 is not here: there is no NVIDIA driver, or the container runtime did not "
    "mount it (NVIDIA_DRIVER_CAPABILITIES must hold utility)",
    "DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded",
    "LIB_RM_VERSION_MISMATCH": "the NVIDIA driver was upgraded under this process: a new container is needed",
    "NO_PERMISSION": "NVML may not open the devices: check /dev/nvidia* and the container's device cgroup",
    "UNKNOWN": "NVML says Unknown Error, as in a container that lost its devices: a new container is needed",
}
SYSTEM_WIDE = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH", "LIBRARY_NOT_FOUND")


class NvmlSource:
    """The driver's GPUs. NVML is loaded by the first ``open`` and initialised anew in a forked child."""

    name = "nvml"

    def __init__(self, ownership: Callable[[], Decision]) -> None:
        self._ownership = ownership
        self._pid = 0  # of the process that initialised
        self._opened: list[NvmlDevice] = []
        self._nvml: Any = None
        self._codes: dict[int, str] = {}

    def open(self) -> None:
        """Loads and initialises NVML. Raises SourceUnavailableError with NVML's error name."""
        self.close()
        nvml = self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise self._unavailable(error) from None
        self._pid = os.getpid()

    def close(self) -> None:
        """Shuts NVML down if this process initialised it; a parent's is the parent's."""
        opened, self._opened = self._opened, []
        if self._pid != os.getpid():
            return
        self._pid = 0
        for device in opened:
            device.close()
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # it may be what failed; initialising again is what helps

    def devices(self) -> Enumeration:
        """This pod's GPUs and MIG instances. Raises SourceUnavailableError."""
        failures: list[str] = []
        candidates = self._candidates(failures)
        decision = self._ownership()
        shown = [candidate for candidate, _ in candidates]
        uuids = {candidate.uuid for candidate in decision.select(shown)}
        self._opened = [device for candidate, device in candidates if candidate.uuid in uuids]
        why = "" if self._opened else self._why_empty(decision, len(candidates), failures)

        def outdated() -> bool:
            return decision.is_overtaken_by(self._ownership(), shown)

        return Enumeration(tuple(self._opened), tuple(failures), decision.decided_by, why, outdated)

    def _why_empty(self, decision: Decision, shown: int, failures: list[str]) -> str:
        if decision.nothing or shown:
            return decision.why or f"none of the {shown} GPU(s) that NVML shows is this pod's"
        return f"NVML shows no GPU that can be opened{': ' + failures[0] if failures else ''}"

    def _candidates(self, failures: list[str]) -> list[tuple[Candidate, NvmlDevice]]:
        nvml = self._nvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise self._unavailable(error) from None
        found: list[tuple[Candidate, NvmlDevice]] = []
        for index in range(count):
            try:
                found += self._gpu(index, failures)
            except nvml.NVMLError as error:
                reason = self._reason(error)
                if reason in SYSTEM_WIDE:
                    raise self._unavailable(error) from None
                if reason != "NO_PERMISSION":  # somebody else's, as containers see them
                    failures.append(reason)
        return found

    def _gpu(self, index: int, failures: list[str]) -> list[tuple[Candidate, NvmlDevice]]:
        """One GPU, or its instances if it is partitioned. Raises NVMLError."""
        from gpuscale.gpu.ownership import Candidate

        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(nvml.nvmlDeviceGetUUID(handle))
        minor = self._minor(handle)
        if not self._is_partitioned(handle):
            identity = GpuIdentity(uuid, str(nvml.nvmlDeviceGetName(handle)), minor)
            return [(Candidate(uuid, minor, index), NvmlDevice(nvml, self._codes, handle, identity))]
        found = []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
                identity = GpuIdentity(
                    str(nvml.nvmlDeviceGetUUID(instance)), self._instance_name(handle, instance), minor
                )
                gi = int(nvml.nvmlDeviceGetGpuInstanceId(instance))
                ci = int(nvml.nvmlDeviceGetComputeInstanceId(instance))
            except nvml.NVMLError as error:
                reason = self._reason(error)
                if reason not in ("NOT_FOUND", "NO_PERMISSION", "INVALID_ARGUMENT"):  # an empty place
                    failures.append(reason)
                continue
            device = NvmlDevice(nvml, self._codes, instance, identity, parent=handle, gpu_instance=gi)
            found.append((Candidate(identity.uuid, minor, index, uuid, place, gi, ci), device))
        return found

    def _instance_name(self, handle: Any, instance: Any) -> str:
        """With the profile in it, which drivers put there themselves."""
        nvml = self._nvml
        name = str(nvml.nvmlDeviceGetName(instance))
        if "MIG" in name:
            return name
        traits = nvml.nvmlDeviceGetAttributes_v2(instance)
        return f"{name} MIG {traits.gpuInstanceSliceCount}g.{round(traits.memorySizeMB / 1024)}gb"

    def _minor(self, handle: Any) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetMinorNumber(handle))
        except self._nvml.NVMLError as error:
            if self._reason(error) in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND"):
                return ""  # unknown, as under WSL
            raise

    def _is_partitioned(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0] == 1)
        except self._nvml.NVMLError as error:
            if self._reason(error) in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION"):
                return False
            raise

    def _load(self) -> Any:
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                raise SourceUnavailableError(
                    "LIBRARY_NOT_FOUND", "nvidia-ml-py is not installed; get it with: pip install nvidia-ml-py"
                ) from None
            self._nvml = pynvml
            self._codes = error_names(pynvml)
        return self._nvml

    def _reason(self, error: Any) -> str:
        return self._codes.get(error.value, f"ERROR_{error.value}")

    def _unavailable(self, error: Any) -> SourceUnavailableError:
        reason = self._reason(error)
        return SourceUnavailableError(reason, REMEDIES.get(reason, f"NVML says {reason}"))


def error_names(nvml: ModuleType) -> dict[int, str]:
    """NVML's error codes by number, without their prefix."""
    prefix = "NVML_ERROR_"
    return {
        getattr(nvml, name): name[len(prefix) :] for name in dir(nvml) if name.startswith(prefix)
    }  # fmt: skip
