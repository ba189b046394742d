"""The integral against the truth, without a driver: random loads, looks at random times."""

from __future__ import annotations

import math
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuscale.gpu.source import RawUtilization
from gpuscale.gpu.utilization import BusyIntegral

PERIOD = 1 / 6
RING = 72
EPOCH = 1_700_000_000.0

steps = st.lists(
    st.tuples(st.floats(0.05, 3.0), st.sampled_from((0.0, 0.0, 1.0, 1.0, 0.3, 0.77))), min_size=1, max_size=30
)
pauses = st.lists(st.floats(0.05, 2.0), min_size=2, max_size=25)


class Driver:
    """A ring of whole percents, as the driver keeps it."""

    def __init__(self, load: list[tuple[float, float]]) -> None:
        self.load = load

    def truth(self, begin: float, end: float) -> float:
        at, busy = 0.0, 0.0
        for length, level in self.load:
            busy += level * max(0.0, min(at + length, end) - max(at, begin))
            at += length
        return busy

    def samples(self, now: float) -> list[tuple[int, float]]:
        last = math.floor(now / PERIOD)
        return [
            (
                round((EPOCH + k * PERIOD) * 1e6),
                float(round(100 * self.truth((k - 1) * PERIOD, k * PERIOD) / PERIOD)),
            )
            for k in range(max(1, last - RING + 1), last + 1)
        ]


@settings(max_examples=60, deadline=None)
@given(steps, pauses, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
@example([(2.0, 0.0), (3.0, 1.0)], [0.5] * 8, False, True, Random(0))  # idle at the start, then busy
def test_busy_seconds_are_the_truth_over_any_window_between_looks(
    load: list[tuple[float, float]], waits: list[float], messy: bool, dry: bool, random: Random
) -> None:
    """Over the samples' own windows: the driver says nothing of the period that has not ended yet. The last term is
    its resolution, half a percent of a sample. A ``dry`` ring is empty while the device idles."""
    driver, integral = Driver(load), BusyIntegral(10.0)
    now = 1.0
    points: list[tuple[float, float, float]] = []
    for wait in waits:
        samples = driver.samples(now)
        if messy:
            samples = [*samples, *random.sample(samples, len(samples) // 2), (0, 100.0)]
            random.shuffle(samples)
        idle = dry and not any(value for _, value in samples)
        raw = RawUtilization("samples", [] if idle else samples, idle=idle, history_is_recent=not idle)
        integral.add(raw, now)
        points.append((math.floor(now / PERIOD) * PERIOD, integral.busy_seconds, integral.observed_seconds))
        duty = integral.duty_cycle()
        assert duty is None or 0 <= duty <= 100
        now += wait
    for (begin, busy, seen), (end, later, seen_later) in zip(points, points[1:], strict=False):
        assert later >= busy
        assert seen_later >= seen
        assert math.isclose(seen_later - seen, end - begin, abs_tol=2 * PERIOD if dry else 1e-3)
    begin, busy, _ = random.choice(points)
    end, later, _ = random.choice(points)
    truth = driver.truth(begin, end)
    if end > begin:
        assert abs(later - busy - truth) <= 0.02 * truth + 0.005 * (end - begin) + 1e-3


def ring(first: int, last: int, value: float) -> list[tuple[int, float]]:
    return [(round((EPOCH + k * PERIOD) * 1e6), value) for k in range(first, last + 1)]


def started(last: int = 12, value: float = 50.0) -> BusyIntegral:
    integral = BusyIntegral(10.0)
    integral.add(RawUtilization("samples", ring(1, last, value), history_is_recent=True), 2.0)
    return integral


def test_what_was_before_the_start_fills_the_window_but_not_the_counter() -> None:
    integral = started()
    assert integral.busy_seconds == 0
    assert integral.duty_cycle() == 50


def test_a_history_of_unknown_age_is_not_shown() -> None:
    integral = BusyIntegral(10.0)
    integral.add(RawUtilization("samples", ring(1, 12, 90.0)), 2.0)
    assert integral.duty_cycle() is None


def test_a_gap_longer_than_the_ring_is_unknown_and_not_idle() -> None:
    integral = started(value=100.0)
    integral.add(RawUtilization("samples", ring(301, 372, 100.0)), 62.0)
    assert abs(integral.busy_seconds - 72 * PERIOD) < 0.01
    assert abs(integral.observed_seconds - 72 * PERIOD) < 0.01
    assert math.isclose(integral.duty_cycle() or 0, 100.0, abs_tol=0.1)


def test_a_dry_ring_of_an_idle_device_is_idle() -> None:
    integral = started(value=100.0)
    for second in range(3, 23):
        integral.add(RawUtilization("samples", idle=True), float(second))
    assert integral.duty_cycle() == 0
    assert math.isclose(integral.observed_seconds, 20.0, abs_tol=0.5)


def test_what_follows_idleness_counts_from_its_first_sample() -> None:
    """The ring was empty from the start; its first batch is no history of before the start."""
    integral = BusyIntegral(10.0)
    for second in (1.0, 2.0, 3.0):
        integral.add(RawUtilization("samples", idle=True), second)
    integral.add(RawUtilization("samples", [*ring(1, 18, 0.0), *ring(19, 24, 100.0)], history_is_recent=True), 4.0)
    assert math.isclose(integral.busy_seconds, 1.0, abs_tol=1e-3)
    assert math.isclose(integral.observed_seconds, 3.0, abs_tol=1e-3)
    assert math.isclose(integral.duty_cycle() or 0, 100 * 6 / 23, abs_tol=0.1)  # of the ring but its first sample


def test_an_impossible_sample_is_unknown() -> None:
    integral = started(value=100.0)
    bad = ring(13, 18, 100.0)
    bad[2] = (bad[2][0], 4294967295.0)
    bad[4] = (bad[4][0], 101.0)
    assert integral.add(RawUtilization("samples", bad), 3.0) == 2
    assert math.isclose(integral.busy_seconds, 4 * PERIOD, abs_tol=1e-3)
    assert math.isclose(integral.observed_seconds, 4 * PERIOD, abs_tol=1e-3)


def test_a_clock_that_went_back_costs_no_more_than_the_gap() -> None:
    integral = started(last=600, value=100.0)
    integral.add(RawUtilization("samples", ring(1, 30, 100.0), rewound=True), 3.0)
    integral.add(RawUtilization("samples", ring(31, 36, 100.0)), 4.0)
    assert math.isclose(integral.busy_seconds, 1.0, abs_tol=1e-3)


def test_a_taker_over_goes_on_without_a_gap() -> None:
    """From the cursor: the ring still holds what nobody read meanwhile, and it is counted once."""
    integral = BusyIntegral(10.0, cursor=ring(12, 12, 0)[0][0], busy=7.0, observed=9.0)
    assert integral.query_cursor == 0
    integral.add(RawUtilization("samples", ring(1, 24, 50.0), history_is_recent=True), 4.0)
    assert math.isclose(integral.busy_seconds, 8.0, abs_tol=1e-3)
    assert math.isclose(integral.observed_seconds, 11.0, abs_tol=1e-3)


def test_a_rate_speaks_for_one_driver_period_at_most() -> None:
    integral = BusyIntegral(10.0)
    for at in (0.0, 0.5, 1.0, 9.0):
        integral.add(RawUtilization("rates", percent=100.0), at)
    assert math.isclose(integral.busy_seconds, 2.0)
    assert math.isclose(integral.observed_seconds, 2.0)


@example([("samples", 0.0), ("rates", 0.0), ("idle", 0.0), ("samples", 1.0)])  # idle between hid the change of method
@given(st.lists(st.tuples(st.sampled_from(("samples", "rates", "gpm", "idle")), st.floats(0, 4294967295)), max_size=40))
def test_no_counter_ever_goes_back_whatever_the_driver_says(looks: list[tuple[str, float]]) -> None:
    integral, at, stamp = BusyIntegral(10.0), 0.0, 1
    for kind, value in looks:
        at, stamp = at + 0.7, stamp + int(value) % 3_000_000
        before = integral.busy_seconds, integral.observed_seconds
        if kind == "samples":
            integral.add(RawUtilization("samples", [(stamp, value)]), at)
        elif kind == "idle":
            integral.add(RawUtilization("samples", idle=True), at)
        else:
            integral.add(RawUtilization("rates" if kind == "rates" else "gpm", percent=value, seconds=0.7), at)
        assert integral.busy_seconds >= before[0]
        assert integral.observed_seconds >= before[1]
