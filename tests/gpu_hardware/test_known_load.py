"""Readings of a real GPU against the truth. Needs an idle NVIDIA GPU and torch with CUDA; takes eight minutes.

GPUSCALE_WRITE_MEASURED=1 writes the table to docs/measured.md when all of it was measured.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest

from gpuscale.gpu.reading import GpuReading
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import create_source
from tests.gpu_hardware.measuring import ROOT, Child, difference, find, fresh, measure
from tests.gpu_hardware.plan import DUTIES
from tests.gpu_hardware.table import LoadRow, MemoryRow, merged, section

pytestmark = pytest.mark.gpu

SETTLE, WINDOW = 11.5, 30.0
ALLOCATED = 1 << 30
IDLE = 1.0
"""Percent that somebody else's load may be."""


@dataclass
class Bench:
    """What the tests share: the sampler, a second way to ask the driver, and the rows so far."""

    sampler: Sampler
    nvml: Any
    about: dict[str, Any]
    gpu: GpuReading
    loads: list[LoadRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)

    @property
    def uuid(self) -> str:
        return str(self.about["uuid"])

    def watts(self) -> float | None:
        """The driver's own reading, None where there is none (MIG)."""
        try:
            handle = self.nvml.nvmlDeviceGetHandleByUUID(self.gpu.identity.uuid)
            return float(self.nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
        except self.nvml.NVMLError:
            return None

    def report(self) -> None:
        """Prints the table; writes it if it is whole and that was asked for."""
        gpu = self.gpu.identity.name
        driver = str(self.nvml.nvmlSystemGetDriverVersion())
        date = datetime.now(timezone.utc).date().isoformat()
        text = section(gpu, driver, date, self.about["torch"], self.loads, self.memory)
        print(f"\n{text}")
        whole = len(self.loads) == 2 * len(DUTIES) and len(self.memory) == 2
        if whole and os.environ.get("GPUSCALE_WRITE_MEASURED") == "1":
            page = ROOT / "docs" / "measured.md"
            before = page.read_text(encoding="utf-8") if page.exists() else ""
            page.write_text(merged(before, gpu, text), encoding="utf-8")


def driver_or_skip() -> Any:
    """pynvml, initialised; skips with the reason where there is no NVIDIA GPU. Loads no torch: that takes seconds."""
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    try:
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    if not count or importlib.util.find_spec("torch") is None:
        pynvml.nvmlShutdown()
        pytest.skip("needs torch with CUDA: it is not installed" if count else "needs an NVIDIA GPU: NVML shows none")
    return pynvml


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        nvml = driver_or_skip()
        stack.callback(nvml.nvmlShutdown)
        with Child() as child:
            if child.unavailable:
                pytest.skip(f"needs torch with CUDA: {child.unavailable}")
            about = child.about
        sampler = Sampler(create_source("nvml"))
        sampler.start()
        stack.callback(sampler.stop, 5.0)
        _, first = fresh(sampler, str(about["uuid"]))
        made = Bench(sampler, nvml, about, first)
        idle_or_fail(made)
        yield made
        made.report()


def idle_or_fail(bench: Bench) -> None:
    """Somebody else's load would be taken for a wrong reading."""
    time.sleep(2.0)  # until the driver's newest samples are later than our own first child's kernels
    begin, first = fresh(bench.sampler, bench.uuid)
    now, last = begin, first
    while now < begin + 3.0:
        now, last = fresh(bench.sampler, bench.uuid)
    busy = difference(first.busy_seconds, last.busy_seconds)
    if busy is not None and 100 * busy / (now - begin) > IDLE:
        pytest.fail(
            f"this test needs an idle GPU; {bench.gpu.identity.name} was busy {busy:.1f} of {now - begin:.1f} s"
        )


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def children(bench: Bench, request: pytest.FixtureRequest) -> Iterator[list[Child]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Child()) for _ in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("duty", DUTIES)
def test_duty_cycle_busy_seconds_energy_and_cost_are_true(bench: Bench, children: list[Child], duty: int) -> None:
    row = measure(bench.sampler, children, duty, bench.watts, SETTLE, WINDOW)
    bench.loads.append(row)
    # The load itself must be what the row says: a plan that was not kept would prove nothing about the reading.
    assert abs(row.true_percent - duty) <= 5, f"the load was {row.true_percent:.1f} % instead of {duty} %"
    assert not row.wrong()


def settled(bench: Bench) -> GpuReading:
    """A reading that began after now: the next one may be under way already."""
    fresh(bench.sampler, bench.uuid)
    return fresh(bench.sampler, bench.uuid)[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_rises_as_torchs_own_figure(bench: Bench, processes: int) -> None:
    before = settled(bench)
    with ExitStack() as stack:
        started = [stack.enter_context(Child()) for _ in range(processes)]
        ready = settled(bench)
        reserved = sum(int(child.about["reserved"]) for child in started)
        for child in started:
            child.tell(allocate=ALLOCATED)
        rise = sum(int(child.answer()["reserved"]) for child in started) - reserved
        after = settled(bench)
        for child in started:
            child.tell(release=True)
            child.answer()
        released = settled(bench)
    start = rose(before.memory_used_bytes, ready.memory_used_bytes)
    contexts = None if start is None else start - reserved
    used = rose(ready.memory_used_bytes, after.memory_used_bytes)
    own = rose(ready.own_memory_used_bytes, after.own_memory_used_bytes)
    row = MemoryRow(processes, rise, used, own, contexts)
    bench.memory.append(row)
    assert rise >= processes * ALLOCATED, "torch did not allocate what it was told to"
    assert not row.wrong()
    given_back = rose(released.memory_used_bytes, after.memory_used_bytes)
    assert given_back is not None
    assert given_back >= rise * 0.97, "memory that torch gave back is still counted"


def rose(first: int | None, last: int | None) -> int | None:
    """None if either is not known."""
    return None if first is None or last is None else last - first


def test_the_gpu_under_load_is_the_one_that_is_read(bench: Bench) -> None:
    gpu = find(bench.sampler, bench.uuid)
    assert gpu is not None
    assert gpu.identity.uuid == bench.gpu.identity.uuid
    assert gpu.memory_total_bytes is not None
    assert gpu.temperature_celsius is None or 0 < gpu.temperature_celsius < 120
