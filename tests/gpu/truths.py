"""What the fuzzed driver would say if it were well: everything that is published is this, or absent."""

from __future__ import annotations

from collections.abc import Iterator

from gpuscale.gpu.reading import GpuReading
from tests.nvml_stub import Stub

LASTING = ("NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED")
"""After these a device is not asked again for a while."""
CODES = (
    "UNINITIALIZED", "INVALID_ARGUMENT", "ALREADY_INITIALIZED", "NOT_FOUND", "INSUFFICIENT_SIZE",
    "INSUFFICIENT_POWER", "DRIVER_NOT_LOADED", "TIMEOUT", "IRQ_ISSUE", "LIBRARY_NOT_FOUND", "CORRUPTED_INFOROM",
    "GPU_IS_LOST", "RESET_REQUIRED", "OPERATING_SYSTEM", "LIB_RM_VERSION_MISMATCH", "IN_USE", "MEMORY", "NO_DATA",
    "VGPU_ECC_NOT_SUPPORTED", "INSUFFICIENT_RESOURCES", "FREQ_NOT_SUPPORTED", "NOT_READY", "GPU_NOT_FOUND",
    "INVALID_STATE", "RESET_TYPE_NOT_SUPPORTED", "UNKNOWN", "777", *LASTING,
)  # fmt: skip
"""All of NVML's, and one that it does not have yet."""
GIB = 1 << 30
RESERVED = 512 << 20
"""What version 1 of the memory call counts as used."""


def drive(stub: Stub) -> None:
    """Two GPUs and an instance of a third, all of them at 60 %."""
    stub.set("gpus", 3)
    (instance,) = stub.mig(2, {"uuid": "MIG-a", "memory.used": GIB})
    for device in ("0", "1", instance):
        stub.set(f"gpu.{device}.util", 60)
    for gpu in (0, 1):
        stub.processes(gpu, ("self", GIB))


def untrue(gpu: GpuReading) -> Iterator[str]:
    """Each figure that is neither the truth nor absent."""
    instance = gpu.identity.uuid.startswith("MIG")
    total = (10 if instance else 80) * GIB
    truth: dict[str, tuple[float, float]] = {
        "memory_used_bytes": (GIB, GIB + RESERVED),
        "memory_total_bytes": (total, total),
        "own_memory_used_bytes": (GIB, GIB),
        "temperature_celsius": (40, 40),
        "power_milliwatts": (60_000, 80_000),
        "duty_cycle": (58, 62),
        "sample_age_seconds": (0, 3600),
    }
    for name, (least, most) in truth.items():
        value = getattr(gpu, name)
        if value is not None and not least <= value <= most:
            yield f"{gpu.identity.uuid} {name} {value}"
    if instance and gpu.power_milliwatts is not None:
        yield "the whole GPU's power is not the instance's"
