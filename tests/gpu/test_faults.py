"""While things break: each fault is injected into a process that runs on the stubbed driver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from gpuscale.gpu.nvml import error_names
from gpuscale.gpu.reading import GpuSnapshot, snapshot_from_json
from tests.gpu.process import ROOT, Process, Snapshot, up
from tests.gpu.truths import CODES, drive, untrue
from tests.nvml_stub import Stub

SNAPSHOT = [field.name for field in fields(GpuSnapshot)]
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


def break_it(stub: Stub, state: str) -> None:
    """Puts the driver into one of the states that a process may be ended in."""
    if state.startswith("hung in "):
        stub.hang(state.removeprefix("hung in "))
    elif state == "impossible values":
        stub.set("gpu.0.samples.bad", [1.0, 4294967295])
        stub.set("gpu.0.temperature", 4294967295)
    elif state == "the clock went back":
        stub.set("gpu.0.samples.shift", -3600)
    elif state != "well":
        stub.fail("*", state)


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ("read", "well"), ("read", "hung in nvmlDeviceGetMemoryInfo"), ("read", "hung in nvmlShutdown"),
        ("read", "GPU_IS_LOST"), ("read", "LIB_RM_VERSION_MISMATCH"), ("read", "UNKNOWN"), ("read", "TIMEOUT"),
        ("read", "impossible values"), ("read", "the clock went back"),
        ("no driver", "well"), ("first", "hung in nvmlInit"), ("first", "DRIVER_NOT_LOADED"),
    ],
)  # fmt: skip
def test_sigterm_ends_it_within_two_seconds(stub: Stub, before: str, state: str) -> None:
    if before == "no driver":
        stub.uninstall()
    if before == "first":
        break_it(stub, state)
    with Process(stub) as process:
        if before == "read":
            process.until(up)
            break_it(stub, state)
        process.ask("resources")  # the handler is there
        time.sleep(0.3)
        assert process.terminate() < 2


def test_every_error_code_from_every_call(tmp_path: Path) -> None:
    """One failure after the other, none left out: what is published is the truth or absent, and it all comes back."""
    pynvml = pytest.importorskip("pynvml")
    assert set(error_names(pynvml).values()) <= {*CODES, "SUCCESS"}, "NVML has codes that are not tried"
    stub = Stub.create(tmp_path, gpus=3)
    drive(stub)
    with Process(stub, staleness=10.0) as process:
        process.until(lambda shot: up(shot) and all(gpu["utilization_method"] for gpu in shot["gpus"]))
    functions = sorted({call.function for call in stub.calls()})
    assert len(functions) >= 25
    command = [sys.executable, "-m", "tests.gpu.fuzz", str(stub.state_path), *functions]
    environment = stub.env(log=False)
    environment.pop("NVIDIA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["tried"] == len(CODES) * len(functions)
    assert said["counted"] > said["tried"] / 2, "not all are failed readings: some say that a device lacks something"
    assert said["wrong"] == []


def test_errors_by_chance_from_all_calls_at_once(tmp_path: Path) -> None:
    """The same in the sampler's own thread and time, with several calls failing in one reading."""
    stub = Stub.create(tmp_path, gpus=3)
    drive(stub)
    with Process(stub, interval=0.02, retry=[0.01, 0.05], window=0.5) as process:
        process.until(lambda shot: up(shot) and shot["gpus"][0]["observed_seconds"] > 1)
        functions = sorted({call.function for call in stub.calls()})
        for number, code in enumerate(CODES):
            with stub.batch():
                for function in functions:
                    stub.fail(function, code, probability=0.3, seed=number)
            end = time.monotonic() + 0.15
            while time.monotonic() < end:
                shot = process.snapshot()
                for gpu in snapshot_from_json({name: shot[name] for name in SNAPSHOT}).gpus:
                    assert not list(untrue(gpu))
            stub.release()
        assert process.snapshot()["errors"].get("SAMPLER_CRASHED", 0) == 0, process.log()
        # Some calls are lacking by now and would be asked again after a minute: a lost GPU is begun anew.
        stub.fail("nvmlDeviceGetMemoryInfo", "GPU_IS_LOST", times=6)
        process.until(lambda shot: up(shot) and all(gpu["temperature_celsius"] for gpu in shot["gpus"]))


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


def test_a_gap_longer_than_the_ring_is_unknown_and_not_idle(stub: Stub) -> None:
    """The sampler hangs for longer than the ring reaches back: what fell out of it adds to no counter."""
    with stub.batch():
        for gpu in (0, 1):
            stub.set(f"gpu.{gpu}.samples.ring", 9)  # 1.5 s
    with Process(stub, staleness=10.0, window=1.0) as process:
        before = process.until(lambda shot: up(shot) and shot["gpus"][0]["observed_seconds"] > 0.3)
        order = stub.hang("nvmlDeviceGetTemperatureV")
        time.sleep(4.0)
        stub.release(order)
        seen = before["gpus"][0]["observed_seconds"]
        after = process.until(lambda shot: shot["gpus"][0]["observed_seconds"] > seen + 1.0)
    first, last = before["gpus"][0], after["gpus"][0]
    observed = last["observed_seconds"] - first["observed_seconds"]
    assert observed < after["at"] - before["at"] - 1.5, "no more than the ring held is known"
    assert last["busy_seconds"] - first["busy_seconds"] == pytest.approx(0.6 * observed, rel=0.02, abs=0.01)
    assert 58 <= last["duty_cycle"] <= 62


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
    """Each begins with nvmlInit and ends with a GPU or an instance that is lost."""
    stub.mig(1, {"uuid": "MIG-1"}, {"uuid": "MIG-2"})
    stub.fail("nvmlDeviceGetMemoryInfo", "GPU_IS_LOST", probability=0.4, seed=3)

    def opened(process: Process, times: int) -> dict[str, int]:
        end = time.monotonic() + 120
        while (now := process.ask("resources"))["opened"] < times:
            assert time.monotonic() < end, now
            time.sleep(0.05)
        return dict(now)

    with Process(stub, interval=0.005, retry=[0.0005, 0.001], log=False) as process:
        before = opened(process, 300)
        after = opened(process, 1300)
        assert sum(gpu["errors"]["GPU_IS_LOST"] for gpu in process.snapshot()["gpus"]) > 1000
        stub.release()
        process.until(up)
    assert after["threads"] == before["threads"]
    assert after["fds"] <= before["fds"] + 1
    assert after["rss"] <= before["rss"] + 1024
