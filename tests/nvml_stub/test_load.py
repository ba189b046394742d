"""The load, its truth, and the samples that come of it."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import Stub, constant, follow, square, steps
from .programs import READER, answer, wait_for

LOADS = {
    "constant": constant(37),
    "square": square(0.4, 0.5),
    "slow square": square(1.3, 0.3, level=90, low=10, phase=0.2),
    "steps": steps([(0.0, 100), (0.31, 0), (0.5, 60), (1.7, 5), (1.95, 100), (2.4, 0)]),
}


def test_samples_add_up_to_the_truth(stub: Stub) -> None:
    """Each load with each period, a GPU for each pair."""
    pairs = list(itertools.product(LOADS.values(), (1 / 6, 0.1)))
    with stub.batch():
        stub.set("gpus", len(pairs))
        for gpu, (load, period) in enumerate(pairs):
            stub.set(f"gpu.{gpu}.samples.clock", "monotonic")
            stub.set(f"gpu.{gpu}.samples.period", period)
            stub.load(gpu, load)
    reader = stub.spawn(READER, str(len(pairs)), stdin=subprocess.PIPE)
    time.sleep(2)
    with stub.batch():
        for gpu in range(len(pairs)):
            stub.set(f"gpu.{gpu}.util", 80)
    time.sleep(1)
    out, _ = reader.communicate("\n", timeout=10)
    for gpu, ((_, period), (stamps, values)) in enumerate(zip(pairs, json.loads(out.splitlines()[1]), strict=True)):
        gaps = [b - a for a, b in itertools.pairwise(stamps)]
        assert all(abs(gap - period * 1e6) <= 1 for gap in gaps)
        for window in (stamps, stamps[-12:]):
            first, end = len(stamps) - len(window), window[-1] / 1e6
            busy = sum(values[first:]) / 100 * period
            truth = stub.busy_seconds(gpu, window[0] / 1e6 - period, end)
            assert busy == pytest.approx(truth, abs=0.0051 * len(window) * period), gpu


def test_the_ring_forgets_and_the_cursor_holds(stub: Stub) -> None:
    stub.set("gpu.0.samples.ring", 10)
    code = """
h = device()
kind, first = nvmlDeviceGetSamples(h, NVML_GPU_UTILIZATION_SAMPLES, 0)
kind, later = nvmlDeviceGetSamples(h, NVML_GPU_UTILIZATION_SAMPLES, first[-4].timeStamp)
show([kind, len(first), len(later) in (3, 4), later[0].timeStamp > first[-4].timeStamp,
      name_of(nvmlDeviceGetSamples, h, NVML_GPU_UTILIZATION_SAMPLES, later[-1].timeStamp + 1000)])
"""
    assert answer(stub, code) == [1, 10, True, True, "NotFound"]


def test_faulty_samples(stub: Stub) -> None:
    with stub.batch():
        stub.set("gpu.0.util", 50)
        for key in ("duplicate", "zero", "unsorted"):
            stub.set(f"gpu.0.samples.{key}", 1)
        stub.set("gpu.0.samples.bad", [0.5, 4294967295])
        stub.set("gpu.1.samples.idle_not_found", 1)
    code = """
kind, samples = nvmlDeviceGetSamples(device(), NVML_GPU_UTILIZATION_SAMPLES, 0)
stamps = [s.timeStamp for s in samples]
show([len(stamps), stamps.count(0), stamps != sorted(stamps), max(s.sampleValue.uiVal for s in samples),
      name_of(nvmlDeviceGetSamples, device(1), NVML_GPU_UTILIZATION_SAMPLES, 0)])
"""
    assert answer(stub, code) == [216, 72, True, 4294967295, "NotFound"]


def test_rates_are_the_last_period(stub: Stub) -> None:
    stub.load(0, steps([(-100, 100)]))
    stub.load(1, square(1 / 6, 0.5, phase=0))
    code = "u = [nvmlDeviceGetUtilizationRates(device(i)).gpu for i in (0, 1)]; show(u)"
    time.sleep(0.4)
    assert answer(stub, code) == [100, pytest.approx(50, abs=1)]
    stub.set("gpu.0.rates.gpu", 4294967295)
    stub.set("gpu.1.rates.gpu", 101)
    assert answer(stub, code) == [4294967295, 101]


def last_values(process: "subprocess.Popen[str]") -> list[int]:
    out, _ = process.communicate("\n", timeout=10)
    values: list[int] = json.loads(out.splitlines()[1])[0][1]
    return values


@pytest.mark.parametrize("what", ["pid", "pgrp", "file"])
def test_load_follows_cpu_time(stub: Stub, what: str, tmp_path: Path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        if what == "pid":
            stub.load(0, follow(pid=busy.pid))
        elif what == "pgrp":
            stub.load(0, follow(f"pgrp pgrp={busy.pid}", cores=2))
        else:
            (tmp_path / "seconds").write_text("0")
            stub.load(0, follow(file=tmp_path / "seconds", scale=1e-3))
        reader = stub.spawn(READER, "1", stdin=subprocess.PIPE)
        wait_for(stub, "nvmlInitWithFlags")
        begin = time.monotonic()
        ticks = cpu_seconds(busy.pid)
        while time.monotonic() < begin + 2:
            time.sleep(0.1)
            if what == "file":
                (tmp_path / "seconds.new").write_text(f"{(time.monotonic() - begin) * 500:f}")
                (tmp_path / "seconds.new").rename(tmp_path / "seconds")
        share = (cpu_seconds(busy.pid) - ticks) / (time.monotonic() - begin)
        values = last_values(reader)
    finally:
        busy.kill()
        busy.wait()
    truth = {"pid": 100 * share, "pgrp": 50 * share, "file": 50}[what]
    assert sum(values) / len(values) == pytest.approx(truth, abs=12)


@pytest.mark.parametrize(("busy", "told"), [(0.05, 0), (0.5, 40)])
def test_housekeeping_is_no_load(stub: Stub, tmp_path: Path, busy: float, told: int) -> None:
    """A tenth of a core is spare: less is idle, and of more only the rest counts."""
    seconds = tmp_path / "seconds"
    seconds.write_text("0")
    stub.load(0, follow(file=seconds, idle=0.1))
    reader = stub.spawn(READER, "1", stdin=subprocess.PIPE)
    wait_for(stub, "nvmlInitWithFlags")
    begin = time.monotonic()
    while time.monotonic() < begin + 2:
        time.sleep(0.1)
        (tmp_path / "new").write_text(f"{(time.monotonic() - begin) * busy:f}")
        (tmp_path / "new").rename(seconds)
    values = last_values(reader)
    assert sum(values) / len(values) == pytest.approx(told, abs=4)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_load_follows_its_own_cgroup(stub: Stub) -> None:
    stub.load(0, follow("cgroup", cores=os.cpu_count() or 1))
    code = """
begin = time.monotonic()
while time.monotonic() < begin + 1: pass
kind, samples = nvmlDeviceGetSamples(device(), NVML_GPU_UTILIZATION_SAMPLES, 0)
show([s.sampleValue.uiVal for s in samples])
"""
    values = answer(stub, code)
    assert isinstance(values, list)
    assert 4 <= len(values) <= 7
    assert min(values) > 0
