"""Every figure of a healthy driver, through the C ABI."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.gpu.process import Process, up
from tests.nvml_stub import Stub, square


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub.create(tmp_path, gpus=3)


def test_all_the_figures_of_a_gpu(stub: Stub) -> None:
    with stub.batch():
        stub.set("gpu.0.fan", 30)
        stub.set("gpu.0.pcie.tx", [1000, 2_000_000])
        stub.set("gpu.0.pcie.rx", [2000, 1_000_000])
        stub.set("gpu.0.nvlinks", 4)
        stub.set("gpu.0.nvlink.tx", [4096, 1_000_000])
        stub.set("gpu.0.nvlink.rx", [8192, 1_000_000])
        stub.set("gpu.0.power", 123_000)
    with Process(stub) as process:
        process.until(up)
        shot = process.until(lambda shot: shot["gpus"][0]["observed_seconds"] > 1.5)
    gpu = shot["gpus"][0]
    assert gpu["identity"]["minor_number"] == "0"
    assert (gpu["memory_used_bytes"], gpu["memory_total_bytes"]) == (1 << 30, 80 << 30)
    assert gpu["temperature_celsius"] == 40
    assert 120_000 < gpu["power_milliwatts"] < 126_000
    assert gpu["fan_speed_percent"] == 30
    assert gpu["pcie_bytes"]["transmit"] > gpu["pcie_bytes"]["receive"] > 2000
    assert gpu["nvlink_bytes"]["transmit"] > 4 * 4096
    assert gpu["utilization_method"] == "samples"
    assert gpu["duty_cycle"] == 0
    assert gpu["errors"] == {}
    other = shot["gpus"][1]
    assert other["fan_speed_percent"] is other["pcie_bytes"] is other["nvlink_bytes"] is None


def test_what_a_device_lacks_is_not_asked_for_every_time(stub: Stub) -> None:
    for function in ("nvmlDeviceGetFanSpeed", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV"):
        stub.fail(function, "FUNCTION_NOT_FOUND")
    with Process(stub) as process:
        process.until(up)
        shot = process.until(lambda shot: shot["gpus"][0]["observed_seconds"] > 1.0)
    assert shot["gpus"][0]["memory_used_bytes"] == (1 << 30) + (512 << 20)  # version 1 counts the reserve
    assert shot["gpus"][0]["temperature_celsius"] == 40
    assert len(stub.calls("nvmlDeviceGetFanSpeed")) == 3
    assert len(stub.calls("nvmlDeviceGetMemoryInfo_v2")) == 3


def test_without_a_ring_the_rate_is_asked_twice_a_second(stub: Stub) -> None:
    stub.fail("nvmlDeviceGetSamples", "NOT_SUPPORTED")
    stub.set("gpu.0.util", 70)
    with Process(stub, interval=2.0, staleness=10.0, log_level="INFO") as process:
        process.until(up)
        shot = process.until(lambda shot: (shot["gpus"][0]["observed_seconds"] or 0) > 2.2)
        assert process.log().count("last period (rates)") == 3
    assert shot["gpus"][0]["utilization_method"] == "rates"
    assert 68 <= shot["gpus"][0]["duty_cycle"] <= 72
    assert len(stub.calls("nvmlDeviceGetUtilizationRates")) >= 3 * 4  # a reading each 2 s would be 2


def test_the_ring_is_drained_every_two_seconds_however_seldom_the_rest_is_read(stub: Stub) -> None:
    stub.set("gpus", 1)
    with Process(stub, interval=30.0, staleness=60.0) as process:
        process.until(up)
        time.sleep(4.3)
    drained = [call.time for call in stub.calls("nvmlDeviceGetSamples")]
    assert len(drained) >= 3
    assert len(stub.calls("nvmlDeviceGetMemoryInfo_v2")) == 1


def test_without_any_utilisation_it_is_absent(stub: Stub) -> None:
    for function in ("nvmlDeviceGetSamples", "nvmlDeviceGetUtilizationRates"):
        stub.fail(function, "NOT_SUPPORTED")
    with Process(stub, log_level="INFO") as process:
        gpu = process.until(lambda shot: up(shot) and "its series are absent" in process.log())["gpus"][0]
    assert gpu["duty_cycle"] is gpu["busy_seconds"] is gpu["utilization_method"] is None
    assert gpu["memory_used_bytes"] == 1 << 30


def test_instances_have_their_own_memory_and_gpm(stub: Stub) -> None:
    first, second = stub.mig(0, {"uuid": "MIG-a", "memory.used": 5 << 30}, {"uuid": "MIG-b", "profile": "2g.20gb"})
    stub.set(f"gpu.{first}.util", 80)
    with Process(stub, staleness=10.0, window=3.0, log_level="INFO") as process:
        process.until(up)
        shot = process.until(lambda shot: (shot["gpus"][0]["observed_seconds"] or 0) > 2.5)
        assert "GPU MIG-a: utilisation is integrated from GPU performance monitoring (gpm)" in process.log()
        assert "-000000000001: utilisation is integrated from the driver's samples" in process.log()
    a, b = shot["gpus"][:2]
    assert [a["identity"]["uuid"], b["identity"]["uuid"]] == ["MIG-a", "MIG-b"]
    assert a["identity"]["minor_number"] == b["identity"]["minor_number"] == "0"
    assert "1g.10gb" in a["identity"]["name"]
    assert "2g.20gb" in b["identity"]["name"]
    assert a["memory_used_bytes"] == 5 << 30
    assert a["utilization_method"] == "gpm"
    assert 75 < a["duty_cycle"] < 85
    assert b["duty_cycle"] == 0
    assert a["power_milliwatts"] is a["energy_joules"] is None  # the whole GPU's
    assert second


def test_an_instance_before_hopper_has_no_utilisation(stub: Stub) -> None:
    stub.set("gpu.0.arch", "ampere")
    stub.mig(0, {"uuid": "MIG-a"})
    with Process(stub) as process:
        gpu = process.until(up)["gpus"][0]
    assert gpu["duty_cycle"] is gpu["busy_seconds"] is gpu["utilization_method"] is None
    assert gpu["memory_total_bytes"] == 10 << 30


def test_a_gpu_that_may_not_be_opened_is_skipped(stub: Stub) -> None:
    stub.forbid(1)
    with Process(stub) as process:
        shot = process.until(up)
    assert [gpu["identity"]["minor_number"] for gpu in shot["gpus"]] == ["0", "2"]
    assert shot["errors"] == {}


def test_visible_devices_only_narrow(stub: Stub) -> None:
    def seen(value: str) -> list[str]:
        with Process(stub, environ={"NVIDIA_VISIBLE_DEVICES": value}) as process:
            shot = process.until(lambda shot: up(shot) or shot["why_empty"] != "no reading yet")
        return [gpu["identity"]["minor_number"] for gpu in shot["gpus"]]

    assert seen("GPU-00000000-0000-4000-8000-000000000001") == ["1"]
    assert seen("none") == []
    assert seen("void") == ["0", "1", "2"]
    assert seen("GPU-ffffffff-0000-4000-8000-000000000001") == []


def test_which_gpus_are_ours_is_asked_again(stub: Stub, tmp_path: Path) -> None:
    """A sidecar starts before the app. What a better way says later counts, and its log says which one decided."""
    uuid = "GPU-00000000-0000-4000-8000-00000000000{}".format
    folder = tmp_path / "handover"
    folder.mkdir()
    handed_over = folder / "gpuscale-gpus.json"
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/mnt").symlink_to("mnt:[1]")
    sidecar = {"root": str(tmp_path), "gpus": "all"}
    with Process(
        stub, sidecar=sidecar, recheck=0.3, log_level="INFO", environ={"GPUSCALE_HANDOVER_DIR": str(folder)}
    ) as process:
        shot = process.until(up)
        assert (shot["decided_by"], len(shot["gpus"])) == ("explicit", 3)
        assert "3 GPU(s) from nvml, this pod's by explicit" in process.log()
        handed_over.write_text(json.dumps({"uuids": [uuid(1)]}))
        shot = process.until(lambda shot: shot["decided_by"] == "handover" and up(shot))
        assert [gpu["identity"]["uuid"] for gpu in shot["gpus"]] == [uuid(1)]
        assert "1 GPU(s) from nvml, this pod's by handover" in process.log()
        handed_over.write_text(json.dumps({"uuids": [uuid(1), uuid(2)]}))
        process.until(lambda shot: len(shot["gpus"]) == 2 and up(shot))
        handed_over.unlink()
        time.sleep(0.7)
        shot = process.snapshot()
        assert (shot["decided_by"], len(shot["gpus"])) == ("handover", 2), "not what the worse way says"
        assert not shot["lost_for_good"]


def test_own_memory_where_pids_are_ours_and_absent_where_they_are_the_hosts(stub: Stub) -> None:
    stub.processes(0, ("self", 3 << 30))
    with Process(stub) as process:
        process.until(lambda shot: up(shot) and shot["gpus"][0]["own_memory_used_bytes"] == 3 << 30)
        stub.set("pid_offset", 4_000_000)
        process.until(lambda shot: shot["gpus"][0]["own_memory_used_bytes"] is None)


def test_two_pods_on_one_gpu_each_see_their_own_memory(stub: Stub) -> None:
    """The driver lists to each what runs in its own PID namespace; the device's memory in use is both's."""
    stub.set("gpu.0.memory.used", 9 << 30)
    stub.processes(0, ("self", 3 << 30))
    with Process(stub) as first:
        first.until(lambda shot: up(shot) and shot["gpus"][0]["own_memory_used_bytes"] == 3 << 30)
    stub.processes(0, ("self", 5 << 30))
    with Process(stub) as second:
        gpu = second.until(lambda shot: up(shot) and shot["gpus"][0]["own_memory_used_bytes"] == 5 << 30)["gpus"][0]
    assert gpu["memory_used_bytes"] == 9 << 30


def test_power_is_the_mean_where_the_drivers_reading_is_of_a_moment(stub: Stub) -> None:
    """The reading is a mean over 0.1 s, so it is 100 W or 500 W; the energy counter's slope is what was drawn."""
    with stub.batch():
        stub.set("gpu.0.power", 100_000)
        stub.set("gpu.0.power.busy", 500_000)
        stub.load(0, square(period=0.5, duty=0.5))
    with Process(stub) as process:
        process.until(up)
        time.sleep(1.2)
        seen = []
        for _ in range(20):
            time.sleep(0.1)
            seen.append(process.snapshot()["gpus"][0]["power_milliwatts"])
    # Over 0.9 to 1.3 s of a square of 0.5 s at most a quarter of a period is more or less than half.
    assert all(220_000 < power < 380_000 for power in seen), seen


def test_the_simulation_says_so_and_follows_the_cpu(stub: Stub) -> None:
    with Process(stub, source="simulated", window=5.0) as process:
        shot = process.until(lambda shot: up(shot) and shot["gpus"][0]["duty_cycle"] is not None)
    gpu = shot["gpus"][0]
    assert shot["source"] == "simulated"
    assert "simulated" in gpu["identity"]["name"]
    assert gpu["memory_used_bytes"] > 1 << 20
    assert gpu["power_milliwatts"] >= 30_000


def test_switched_off_is_silent_and_alive(stub: Stub) -> None:
    with Process(stub, source="none") as process:
        shot = process.until(lambda shot: "switched off" in shot["why_empty"])
        assert shot["alive"]
        assert shot["gpus"] == []
        assert process.log() == ""
