"""What devices are and have: identity, sensors, MIG, GPM, processes, traffic."""

import time

import pytest

from . import Stub, constant, square
from .programs import answer


def test_devices_are_what_the_state_says(stub: Stub) -> None:
    stub.set("gpu.1.name", "NVIDIA A100-SXM4-40GB")
    stub.set("gpu.1.minor", 5)
    stub.set("gpu.1.arch", "ampere")
    code = """
h = device(1)
uuid = nvmlDeviceGetUUID(h)
pci = nvmlDeviceGetPciInfo(h)
again = [nvmlDeviceGetHandleByUUID(uuid), nvmlDeviceGetHandleByPciBusId(pci.busId)]
show([nvmlDeviceGetCount(), nvmlSystemGetDriverVersion(), nvmlSystemGetCudaDriverVersion(),
      nvmlDeviceGetName(h), nvmlDeviceGetMinorNumber(h), nvmlDeviceGetCudaComputeCapability(h),
      nvmlDeviceGetArchitecture(h) == NVML_DEVICE_ARCH_AMPERE, uuid,
      [nvmlDeviceGetIndex(each) for each in again]])
"""
    assert answer(stub, code) == [
        *(2, "580.95.05", 13000, "NVIDIA A100-SXM4-40GB", 5, [8, 0], True),
        *("GPU-00000000-0000-4000-8000-000000000001", [1, 1]),
    ]


def test_a_device_may_be_counted_and_refused(stub: Stub) -> None:
    stub.forbid(0)
    assert answer(stub, "show([nvmlDeviceGetCount(), name_of(device, 0), name_of(device, 1)])") == [
        *(2, "NoPermission", "Success"),
    ]


def test_memory_versions_and_sensors(stub: Stub) -> None:
    stub.set("gpu.0.memory.used", 3 << 30)
    stub.set("gpu.0.memory.reserved", 1 << 30)
    stub.set("gpu.0.temperature", 71)
    code = """
h = device()
wrong = c_nvmlMemory_v2_t()
wrong.version = 7
show([nvmlDeviceGetMemoryInfo(h).used >> 30, nvmlDeviceGetMemoryInfo(h, nvmlMemory_v2).used >> 30,
      nvmlDeviceGetMemoryInfo(h, nvmlMemory_v2).total >> 30, name_of(nvmlDeviceGetMemoryInfo, h, 7),
      nvmlDeviceGetTemperature(h, NVML_TEMPERATURE_GPU), nvmlDeviceGetTemperatureV(h, NVML_TEMPERATURE_GPU),
      nvmlDeviceGetPowerUsage(h), name_of(nvmlDeviceGetFanSpeed, h)])
"""
    assert answer(stub, code) == [4, 3, 80, "ArgumentVersionMismatch", 71, 71, 70000, "NotSupported"]


def test_impossible_memory_is_passed_on(stub: Stub) -> None:
    stub.set("gpu.0.memory.used", 100 << 30)
    assert answer(stub, "m = nvmlDeviceGetMemoryInfo(device(), nvmlMemory_v2)\nshow([m.used >> 30, m.free])") == [
        100,
        0,
    ]


def test_energy_counts_in_real_time_and_follows_the_load(stub: Stub) -> None:
    with stub.batch():
        stub.set("gpu.0.energy", 5_000_000)
        stub.set("gpu.0.power", 100_000)
        stub.set("gpu.0.power.busy", 500_000)
        stub.load(0, square(0.2, 0.25))
    begin, energy, end, mean = answer(
        stub,
        "h = device(); time.sleep(1); a = time.monotonic(); e = nvmlDeviceGetTotalEnergyConsumption(h);"
        " b = time.monotonic(); kind, p = nvmlDeviceGetSamples(h, NVML_TOTAL_POWER_SAMPLES, 0);"
        " show([a, e, b, p[-1].sampleValue.uiVal])",
    )
    assert stub.energy_millijoules(0, begin) - 1 <= energy <= stub.energy_millijoules(0, end)
    assert 100_000 <= mean <= 500_000
    stub.set("gpu.0.energy", None)
    assert answer(stub, "show(name_of(nvmlDeviceGetTotalEnergyConsumption, device()))") == "NotSupported"


def test_mig_instances(stub: Stub) -> None:
    stub.mig(
        0,
        {"uuid": "MIG-a", "profile": "3g.40gb", "memory.used": 7 << 30, "slices": 3},
        {"uuid": "MIG-b", "gi": 9},
    )
    code = """
h = device()
found = []
for i in range(nvmlDeviceGetMaxMigDeviceCount(h)):
    try:
        found.append(nvmlDeviceGetMigDeviceHandleByIndex(h, i))
    except NVMLError_NotFound:
        pass
a, b = found
parent = nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDeviceGetHandleByUUID("MIG-b"))
show([nvmlDeviceGetMigMode(h), nvmlDeviceGetMigMode(device(1)), nvmlDeviceGetUUID(a), nvmlDeviceGetName(a),
      nvmlDeviceGetMemoryInfo(a, nvmlMemory_v2).used >> 30, nvmlDeviceGetAttributes(a).gpuInstanceSliceCount,
      nvmlDeviceGetGpuInstanceId(b), nvmlDeviceGetComputeInstanceId(b), nvmlDeviceGetUUID(parent)[-1],
      bool(nvmlDeviceIsMigDeviceHandle(a)), bool(nvmlDeviceIsMigDeviceHandle(h)),
      name_of(nvmlDeviceGetUtilizationRates, a), name_of(nvmlDeviceGetUtilizationRates, h),
      name_of(nvmlDeviceGetSamples, h, NVML_GPU_UTILIZATION_SAMPLES, 0),
      name_of(nvmlDeviceGetMinorNumber, a)])
"""
    assert answer(stub, code) == [
        *([1, 1], [0, 0], "MIG-a", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", 7, 3, 9, 0, "0", True, False),
        *["NotSupported"] * 4,
    ]


GPM = """
def gpm(take):
    samples = []
    for pause in (1.2, 0):
        sample = nvmlGpmSampleAlloc()
        take(sample)
        samples.append(sample)
        time.sleep(pause)
    get = c_nvmlGpmMetricsGet_t()
    get.version, get.numMetrics, get.sample1, get.sample2 = NVML_GPM_METRICS_GET_VERSION, 2, *samples
    get.metrics[0].metricId, get.metrics[1].metricId = NVML_GPM_METRIC_SM_UTIL, NVML_GPM_METRIC_FP64_UTIL
    nvmlGpmMetricsGet(get)
    for sample in samples:
        nvmlGpmSampleFree(sample)
    return [get.metrics[0].value, get.metrics[1].nvmlReturn]
"""


def test_gpm_of_an_instance_and_its_absence_on_ampere(stub: Stub) -> None:
    first, second = stub.mig(0, {}, {"gi": 4})
    stub.set("gpu.1.arch", "ampere")
    since = time.monotonic() - 1  # a sample may be of a tenth of a second ago, and the load must have begun by then
    stub.load(first, constant(20), at=since)
    stub.load(second, constant(60), at=since)
    code = """
h = device()
instance = nvmlDeviceGetMigDeviceHandleByIndex(h, 0)
show([nvmlGpmQueryDeviceSupport(h).isSupportedDevice, nvmlGpmQueryDeviceSupport(device(1)).isSupportedDevice,
      gpm(lambda sample: nvmlGpmSampleGet(instance, sample)),
      gpm(lambda sample: nvmlGpmMigSampleGet(h, 4, sample)),
      name_of(nvmlGpmMigSampleGet, h, 5, nvmlGpmSampleAlloc()),
      name_of(nvmlGpmSampleGet, device(1), nvmlGpmSampleAlloc())])
"""
    assert answer(stub, GPM + code) == [
        *(1, 0, [pytest.approx(20), 3], [pytest.approx(60), 3], "NotFound", "NotSupported"),
    ]


def test_processes(stub: Stub) -> None:
    stub.processes(0, ("self", 5 << 30), (77, None), "88 1024 kind=G sm=40")
    stub.processes(1, "99 1024 sm=10")
    stub.set("gpu.1.processes.empty_success", 1)
    code = """
h = device()
own = nvmlDeviceGetComputeRunningProcesses(h)
samples = nvmlDeviceGetProcessUtilization(h, 0)
show([own[0].pid - os.getpid(), own[0].usedGpuMemory >> 30, own[1].pid, own[1].usedGpuMemory,
      [p.pid for p in nvmlDeviceGetGraphicsRunningProcesses(h)], [(s.pid, s.smUtil) for s in samples],
      name_of(nvmlDeviceGetProcessUtilization, h, 1 << 62),
      name_of(nvmlDeviceGetProcessUtilization, device(1), 1 << 62)])
"""
    assert answer(stub, code) == [0, 5, 77, None, [88], [[88, 40]], "NotFound", 0]
    stub.set("pid_offset", 100_000)
    assert answer(stub, "show(nvmlDeviceGetComputeRunningProcesses(device())[0].pid - os.getpid())") == 100_000


def test_traffic_counters(stub: Stub) -> None:
    with stub.batch():
        stub.set("gpu.0.pcie.tx", [1e9, 1e6])
        stub.set("gpu.0.pcie.rx", [2**32 - 1000, 1e6])
        stub.set("gpu.0.pcie.bits", 32)
        stub.set("gpu.0.nvlinks", 4)
        stub.set("gpu.0.nvlink.tx", 1024 * 100)
    code = """
time.sleep(0.1)
fields = [NVML_FI_DEV_PCIE_COUNT_TX_BYTES, NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
          (NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 0xffffffff), (NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 1),
          (NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, 0), NVML_FI_DEV_NVLINK_LINK_COUNT]
v = nvmlDeviceGetFieldValues(device(), fields)
other = nvmlDeviceGetFieldValues(device(1), fields)
show([1e9 < v[0].value.ullVal < 1.01e9, v[1].value.ullVal < 1e7, v[2].value.ullVal, v[3].value.ullVal,
      v[4].nvmlReturn,
      v[5].value.uiVal, [f.nvmlReturn for f in other],
      nvmlDeviceGetPcieThroughput(device(), NVML_PCIE_UTIL_TX_BYTES), nvmlDeviceGetNvLinkState(device(), 3)])
"""
    assert answer(stub, code) == [True, True, 400, 100, 3, 4, [3, 3, 3, 3, 3, 0], 1000, 1]
