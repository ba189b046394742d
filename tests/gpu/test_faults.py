"""While things break: each fault is injected into a process that runs on the stubbed driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.process import Process, Snapshot, up
from tests.nvml_stub import Stub

CODES = (
    "UNINITIALIZED", "INVALID_ARGUMENT", "ALREADY_INITIALIZED", "NOT_FOUND", "INSUFFICIENT_SIZE",
    "INSUFFICIENT_POWER", "DRIVER_NOT_LOADED", "TIMEOUT", "IRQ_ISSUE", "LIBRARY_NOT_FOUND", "CORRUPTED_INFOROM",
    "GPU_IS_LOST", "RESET_REQUIRED", "OPERATING_SYSTEM", "LIB_RM_VERSION_MISMATCH", "IN_USE", "MEMORY", "NO_DATA",
    "VGPU_ECC_NOT_SUPPORTED", "INSUFFICIENT_RESOURCES", "FREQ_NOT_SUPPORTED", "NOT_READY", "GPU_NOT_FOUND",
    "INVALID_STATE", "RESET_TYPE_NOT_SUPPORTED", "UNKNOWN", "777",
    # after these a device is not asked again for a while, so they come last
    "NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED",
)  # fmt: skip
VALUES = ("duty_cycle", "memory_used_bytes", "memory_total_bytes", "temperature_celsius", "power_milliwatts")


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    stub = Stub.create(tmp_path, gpus=2)
    stub.set("gpu.0.util", 60)
    stub.set("gpu.1.util", 60)
    return stub


@pytest.fixture
def process(stub: Stub) -> Iterator[Process]:
    with Process(stub) as process:
        yield process


def down(shot: Snapshot) -> bool:
    """No GPU is up, and nothing that is not known is published."""
    for gpu in shot["gpus"]:
        if not gpu["up"]:
            assert all(gpu[name] is None for name in (*VALUES, "busy_seconds", "energy_joules"))
    return not any(gpu["up"] for gpu in shot["gpus"])


def test_the_driver_is_missing_at_start_and_arrives(stub: Stub) -> None:
    stub.uninstall()
    with Process(stub) as process:
        shot = process.until(lambda shot: shot["errors"])
        assert shot["num_devices"] == 0
        assert shot["alive"]
        assert not shot["lost_for_good"]
        assert "libnvidia-ml.so.1" in shot["why_empty"]
        time.sleep(0.5)
        stub.install()
        process.until(up)
        assert process.log().count("no GPU values") == 1


@pytest.mark.parametrize("code", ["DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH", "UNKNOWN", "NO_PERMISSION"])
def test_initialisation_fails_for_a_while(stub: Stub, code: str) -> None:
    stub.fail("nvmlInit", code)
    with Process(stub) as process:
        shot = process.until(lambda shot: shot["errors"].get(code, 0) >= 2)
        assert shot["gpus"] == []
        stub.release()
        process.until(up)


def test_a_gpu_that_could_not_be_opened_is_tried_again(stub: Stub) -> None:
    """Its failure was for a moment only, and the other GPU has none that would have the driver opened anew."""
    stub.fail("nvmlDeviceGetUUID", "TIMEOUT", gpu=1)
    with Process(stub) as process:
        process.until(lambda shot: up(shot) and shot["errors"].get("TIMEOUT", 0) >= 2)
        assert "another one cannot be opened: TIMEOUT" in process.log()
        stub.release()
        shot = process.until(lambda shot: up(shot) and len(shot["gpus"]) == 2)
        assert shot["gpus"][0]["busy_seconds"] > 0


def test_a_lost_gpu_is_down_the_other_is_not_and_it_comes_back(stub: Stub, process: Process) -> None:
    process.until(up)
    stub.lose(0)
    shot = process.until(lambda shot: not shot["gpus"][0]["up"])
    assert shot["gpus"][0]["duty_cycle"] is None
    assert shot["gpus"][0]["errors"]["GPU_IS_LOST"] >= 1
    shot = process.until(lambda shot: shot["lost_for_good"])
    assert shot["alive"]
    process.until(lambda shot: shot["gpus"][1]["up"])
    stub.find(0)
    shot = process.until(up)
    assert not shot["lost_for_good"]


def test_the_driver_was_upgraded_under_the_process(stub: Stub, process: Process) -> None:
    process.until(up)
    stub.fail("*", "LIB_RM_VERSION_MISMATCH")
    process.until(lambda shot: down(shot) and shot["lost_for_good"])
    stub.release()
    process.until(lambda shot: up(shot) and not shot["lost_for_good"])


def test_a_container_that_lost_its_devices_is_lost_for_good(stub: Stub, process: Process) -> None:
    """After a daemon-reload every call says Unknown Error."""
    process.until(up)
    stub.fail("*", "UNKNOWN")
    process.until(lambda shot: down(shot) and shot["lost_for_good"])


@pytest.mark.parametrize("function", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetSamples", "nvmlInit"])
def test_a_call_that_hangs(stub: Stub, function: str) -> None:
    with Process(stub) as process:
        process.until(up)
        if function == "nvmlInit":
            stub.fail("nvmlDeviceGetTemperatureV", "GPU_IS_LOST", times=1)
        order = stub.hang(function)
        process.until(lambda shot: down(shot) and not shot["alive"])
        begin = time.monotonic()
        for _ in range(20):
            assert not process.snapshot()["alive"]
        assert time.monotonic() - begin < 5
        stub.release(order)
        process.until(lambda shot: up(shot) and shot["alive"])


@pytest.mark.parametrize("state", ["running", "hung", "lost", "no driver", "hung in init"])
def test_sigterm_ends_it_within_two_seconds(stub: Stub, state: str) -> None:
    if state == "no driver":
        stub.uninstall()
    if state == "hung in init":
        stub.hang("nvmlInit")
    with Process(stub) as process:
        if state in ("running", "hung", "lost"):
            process.until(up)
        if state == "hung":
            stub.hang("nvmlDeviceGetMemoryInfo")
        if state == "lost":
            stub.fail("*", "GPU_IS_LOST")
        time.sleep(0.5)
        process.ask("resources")  # the handler is there
        assert process.terminate() < 2


def test_every_error_code_from_every_call(stub: Stub) -> None:
    """Whatever fails: what is published is the truth or absent, and it all comes back."""
    reserved = 512 << 20  # which version 1 of the memory call counts as used
    truth: dict[str, tuple[int, ...]] = {
        "memory_used_bytes": (1 << 30, (1 << 30) + reserved),
        "memory_total_bytes": (80 << 30,),
        "temperature_celsius": (40,),
    }
    with Process(stub, interval=0.05, retry=[0.02, 0.1], window=0.5) as process:
        process.until(lambda shot: up(shot) and shot["gpus"][0]["observed_seconds"] > 1)
        functions = sorted({call.function for call in stub.calls()} - {"nvmlShutdown"})
        assert len(functions) >= 15
        for number, code in enumerate(CODES):
            with stub.batch():
                for function in functions:
                    stub.fail(function, code, probability=0.3, seed=number)
            end = time.monotonic() + 0.4
            while time.monotonic() < end:
                for gpu in process.snapshot()["gpus"]:
                    for name, values in truth.items():
                        assert gpu[name] in (*values, None)
                    assert gpu["duty_cycle"] is None or 58 <= gpu["duty_cycle"] <= 62
                    assert gpu["power_milliwatts"] is None or 60_000 < gpu["power_milliwatts"] < 80_000
            stub.release()
            assert process.snapshot()["errors"].get("SAMPLER_CRASHED", 0) == 0, process.log()
        stub.fail("nvmlDeviceGetMemoryInfo", "GPU_IS_LOST", times=4)
        process.until(lambda shot: up(shot) and all(gpu[name] for gpu in shot["gpus"] for name in VALUES))


def test_impossible_values_are_failed_readings(stub: Stub, process: Process) -> None:
    process.until(up)
    with stub.batch():
        stub.set("gpu.0.samples.bad", [1.0, 101])
        stub.set("gpu.0.memory.used", 81 << 30)
        stub.set("gpu.0.temperature", 4294967295)
        stub.set("gpu.0.fan", 4294967295)
        stub.set("gpu.1.samples.bad", [1.0, 4294967295])
        stub.set("gpu.1.energy", None)
        stub.set("gpu.1.power", 4294967295)

    def refused(shot: Snapshot) -> bool:
        first, second = shot["gpus"]
        gone = [first[name] for name in ("duty_cycle", "memory_used_bytes", "temperature_celsius")]
        gone += [second["duty_cycle"], second["power_milliwatts"], first["fan_speed_percent"]]
        return gone == [None] * 6

    shot = process.until(refused)
    assert all(gpu["errors"]["IMPOSSIBLE_VALUE"] >= 1 for gpu in shot["gpus"])
    assert shot["gpus"][0]["power_milliwatts"] is not None


def test_the_drivers_clock_goes_back_and_forth(stub: Stub, process: Process) -> None:
    before = process.until(lambda shot: up(shot) and shot["gpus"][0]["observed_seconds"] > 0.5)
    stub.set("gpu.0.samples.shift", -3600)
    middle = process.until(lambda s: s["gpus"][0]["busy_seconds"] > before["gpus"][0]["busy_seconds"] + 0.5)
    stub.set("gpu.0.samples.shift", 3600)
    after = process.until(lambda s: s["gpus"][0]["busy_seconds"] > middle["gpus"][0]["busy_seconds"] + 0.5)
    assert after["gpus"][0]["busy_seconds"] - before["gpus"][0]["busy_seconds"] < after["at"] - before["at"] + 1
    assert 55 < after["gpus"][0]["duty_cycle"] < 65


def test_fork_before_and_after_the_first_use_and_exec(stub: Stub) -> None:
    with Process(stub, start=False) as process:
        assert up(process.ask("fork"))  # as a preloading server does
        process.ask("start")
        process.until(up)
        assert up(process.ask("fork"))
        process.until(up)
        assert process.ask("exec") == "exec"
    initialised = {call.pid for call in stub.calls("nvmlInitWithFlags")}
    assert len(initialised) == 3


def test_a_thousand_cycles_of_lost_and_recovered_do_not_grow(stub: Stub) -> None:
    stub.mig(1, {"uuid": "MIG-1"}, {"uuid": "MIG-2"})
    stub.fail("nvmlDeviceGetMemoryInfo", "GPU_IS_LOST", probability=0.4, seed=3)

    def lost(shot: Snapshot) -> int:
        return sum(gpu["errors"].get("GPU_IS_LOST", 0) for gpu in shot["gpus"])

    with Process(stub, interval=0.05, retry=[0.001, 0.002], log=False) as process:
        process.until(lambda shot: lost(shot) > 300, timeout=60)
        before = process.ask("resources")
        process.until(lambda shot: lost(shot) > 1500, timeout=60)
        after = process.ask("resources")
        stub.release()
        process.until(up)
    assert after["threads"] == before["threads"]
    assert after["fds"] <= before["fds"] + 1
    assert after["rss"] <= before["rss"] + 1024
