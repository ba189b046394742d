"""The parts of ``make test-gpu`` that need no GPU: its arithmetic, its table, and a rehearsal with a CPU for a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuscale.gpu.reading import GpuIdentity
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import Enumeration, RawReading, RawUtilization
from tests.gpu_hardware.measuring import ROOT, Child, difference, fresh, measure
from tests.gpu_hardware.plan import DUTIES, PERIOD, Slot, area, bursts, busy_between, drive, slots, union
from tests.gpu_hardware.table import LoadRow, MemoryRow, load_table, merged, section

TIMES = st.floats(0, 100, allow_nan=False)
INTERVALS = st.lists(st.tuples(TIMES, TIMES).map(lambda pair: (min(pair), max(pair))), max_size=12)
GOOD = LoadRow(
    processes=1, asked=50, seconds=30.0, true_percent=50.0, duty_cycle=51.0, true_busy=15.0, busy=15.3, observed=30.0,
    host_seconds=20.0, device_seconds=19.9, power_time=9000.0, energy=9100.0, cost_percent=0.1, method="samples",
)  # fmt: skip
MIB = 1 << 20


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("duty", DUTIES)
def test_the_processes_slots_cover_the_duty_cycle_together(duty: int, processes: int) -> None:
    begin, end = 1000.0, 1000.0 + 100 * PERIOD
    on = [burst for slot in slots(duty, processes) for burst in bursts(begin, end, slot)]
    assert busy_between(on, begin, end) == pytest.approx((end - begin) * duty / 100)
    if processes == 2:  # one third of it at the same time, so that adding up would be wrong
        assert sum(stop - start for start, stop in on) == pytest.approx((end - begin) * duty / 100 * 4 / 3)


def test_a_duty_or_a_number_of_processes_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="duty must be 0 to 100"):
        slots(101, 1)
    with pytest.raises(ValueError, match="processes must be 1 or 2"):
        slots(50, 3)


def test_a_full_slot_is_one_burst_without_a_gap() -> None:
    assert list(bursts(5.0, 9.0, slots(100, 1)[0])) == [(5.0, 9.0)]


def test_no_burst_goes_on_after_the_end() -> None:
    assert list(bursts(0.0, 1.1, Slot(0.0, 0.5), 1.0)) == [(0.0, 0.5), (1.0, 1.1)]


@given(INTERVALS)
def test_the_union_is_disjoint_and_counts_shared_time_once(intervals: list[tuple[float, float]]) -> None:
    merged_ones = union(intervals)
    assert all(left[1] < right[0] for left, right in zip(merged_ones, merged_ones[1:], strict=False))
    edges = sorted({edge for interval in intervals for edge in interval})
    expected = sum(
        right - left
        for left, right in zip(edges, edges[1:], strict=False)
        if any(start <= left and right <= stop for start, stop in intervals)
    )
    assert busy_between(intervals, 0, 100) == pytest.approx(expected)


@given(INTERVALS, TIMES, TIMES, TIMES)
def test_busy_time_of_adjacent_windows_adds_up(
    intervals: list[tuple[float, float]], first: float, second: float, third: float
) -> None:
    begin, middle, end = sorted((first, second, third))
    parts = busy_between(intervals, begin, middle) + busy_between(intervals, middle, end)
    assert parts == pytest.approx(busy_between(intervals, begin, end))


class Clockwork:
    """A clock and an engine in one: a launch takes a hundredth, finishing two; sleeping overshoots as told."""

    def __init__(self, overshoot: float = 0.0) -> None:
        self.now = 0.0
        self.overshoot = overshoot
        self._began = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.overshoot

    def begin(self) -> None:
        self._began = self.now

    def launch(self) -> None:
        self.now += 0.01

    def finish(self) -> float:
        self.now += 0.02
        return self.now - self._began


def test_what_was_driven_is_recorded_with_its_overshoot() -> None:
    works = Clockwork(overshoot=0.005)
    done, seconds = drive([(1.0, 1.1), (2.0, 2.1)], works, works.clock, works.sleep)
    assert [start for start, _ in done] == pytest.approx([1.005, 2.005])
    assert all(stop - start == pytest.approx(0.12) for start, stop in done)
    assert seconds == pytest.approx(0.24)


def test_a_burst_that_was_missed_is_no_truth() -> None:
    works = Clockwork(overshoot=0.5)
    assert drive([(1.0, 1.1)], works, works.clock, works.sleep) == ([], 0.0)


def test_power_times_time_covers_the_window() -> None:
    assert area([(1.0, 100.0), (2.0, 100.0), (4.0, 300.0)], 0.0, 6.0) == pytest.approx(1000.0)
    assert area([(1.0, 100.0)], 0.0, 6.0) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"duty_cycle": 53.5}, "duty cycle"),
        ({"busy": 14.0}, "busy seconds"),
        ({"busy": None}, "absent"),
        ({"device_seconds": 19.0}, "truth in doubt"),
        ({"energy": 9500.0}, "J"),
        ({"cost_percent": 0.6}, "of a core"),
    ],
)
def test_each_limit_is_held(change: dict[str, float | None], word: str) -> None:
    assert GOOD.wrong() == []
    wrong = replace(GOOD, **change).wrong()  # type: ignore[arg-type]
    assert len(wrong) == 1
    assert word in wrong[0]


def test_time_slices_of_two_processes_do_not_count_against_the_truth() -> None:
    assert replace(GOOD, processes=2, device_seconds=18.0).wrong() == []


def test_energy_that_is_not_told_is_not_wrong_and_not_zero() -> None:
    row = replace(GOOD, energy=None)
    assert row.wrong() == []
    assert [cell.strip() for cell in load_table([row])[2].split("|")][10] == "–"


def test_memory_is_held_to_torchs_figure() -> None:
    good = MemoryRow(1, 1024 * MIB, 1024 * MIB, None, 500 * MIB)
    assert good.wrong() == []
    assert "memory in use rose by 1100" in replace(good, used=1100 * MIB).wrong()[0]
    assert "own memory" in replace(good, own_used=512 * MIB).wrong()[0]
    assert "contexts" in replace(good, contexts=0).wrong()[0]
    assert replace(good, used=None).wrong() == ["memory in use is absent"]


def test_the_page_keeps_other_gpus_and_replaces_its_own() -> None:
    memory = [MemoryRow(1, MIB, MIB, MIB, MIB)]
    old, new, other = (
        section(gpu, driver, "2026-01-01", "2.3", [GOOD], memory)
        for gpu, driver in (("GPU A", "550"), ("GPU A", "580"), ("GPU B", "570"))
    )
    page = merged(merged("", "GPU A", old), "GPU B", other)
    assert page.startswith("# Measured on real GPUs\n\n")
    again = merged(page, "GPU A", new)
    assert again == page.replace("driver 550", "driver 580")
    assert merged(again, "GPU A", new) == again
    table = [line for line in again.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 2  # two kinds of tables, each with even rows


class HalfBusy:
    """A source and its one device: every sixth of a second a sample of 50 percent, and 100 W."""

    name = "half busy"
    utilization_period = 0.5
    identity = GpuIdentity("GPU-half", "half busy", "0")

    def open(self) -> None:
        pass

    def devices(self) -> Enumeration:
        return Enumeration((self,), decided_by="test")

    def close(self) -> None:
        pass

    def read_utilization(self, cursor: int, failures: list[str]) -> RawUtilization:
        now = int(time.monotonic() * 6)
        stamps = [number * 1_000_000 // 6 for number in range(now - 60, now + 1)]
        return RawUtilization("samples", [(stamp, 50.0) for stamp in stamps if stamp > cursor])

    def read(self) -> RawReading:
        return RawReading(memory_used_bytes=1, energy_millijoules=int(time.monotonic() * 100_000))


def test_rehearsal_a_wrong_reading_fails_and_its_busy_seconds_are_those_read() -> None:
    sampler = Sampler(HalfBusy(), interval=0.2, window=1.0)
    sampler.start()
    try:
        with Child("host") as child:
            row = measure(sampler, [child], 0, lambda: 100.0, settle=1.0, window=2.0)
    finally:
        assert sampler.stop(5.0)
    assert (row.true_busy, row.true_percent, row.host_seconds) == (0, 0, 0)
    assert row.duty_cycle == pytest.approx(50, abs=1)
    assert row.busy is not None
    assert row.observed is not None
    assert row.busy == pytest.approx(row.observed / 2)
    assert any("duty cycle 50.0 %, truly 0.0 %" in wrong for wrong in row.wrong())
    assert row.power_time == pytest.approx(100 * row.seconds)
    assert row.energy is not None
    assert row.cost_percent > 0


def test_rehearsal_two_processes_are_driven_as_planned() -> None:
    sampler = Sampler(HalfBusy(), interval=0.2, window=1.0)
    sampler.start()
    try:
        with Child("host") as first, Child("host") as second:
            row = measure(sampler, [first, second], 50, lambda: None, settle=0.5, window=1.0)
    finally:
        assert sampler.stop(5.0)
    assert 0 < row.true_busy < row.seconds
    assert row.host_seconds > row.true_busy  # the shared third was driven twice
    assert row.device_seconds <= row.host_seconds
    assert row.power_time is None


def test_memory_orders_are_answered_and_a_dead_child_is_told_of() -> None:
    with Child("host") as child:
        child.tell(allocate=5)
        assert child.answer() == {"reserved": 5}
        child.tell(release=True)
        assert child.answer() == {"reserved": 0}
        child.tell(nonsense=1)
        with pytest.raises(RuntimeError, match="an order must be drive, allocate or release"):
            child.answer()


def test_a_gpu_that_is_not_there_has_no_reading() -> None:
    sampler = Sampler(HalfBusy(), interval=0.2)
    with pytest.raises(RuntimeError, match="no fresh reading of the GPU x"):
        fresh(sampler, "x", timeout=0.1)
    assert difference(None, 1.0) is None


def test_without_cuda_the_child_says_so_and_ends() -> None:
    """torch is kept from being imported: that takes seconds, and a GPU may be here."""
    script = (
        "import sys; sys.modules['torch'] = None; from tests.gpu_hardware import load; load.main('cuda'); "
        "print('ended')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    answer, ended = done.stdout.splitlines()
    assert json.loads(answer) == {"unavailable": "torch is not installed"}
    assert ended == "ended"
