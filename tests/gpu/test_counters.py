"""Running counts that wrap, restart and lie."""

from hypothesis import given
from hypothesis import strategies as st

from gpuscale.gpu.counters import MeanPower, RunningCount


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30))
def test_a_counter_never_goes_back(raws: list[int]) -> None:
    count, value = RunningCount(1e9), 0.0
    for at, raw in enumerate(raws):
        count.add(raw, float(at))
        assert count.value is not None
        assert count.value >= value
        value = count.value


@given(st.lists(st.integers(0, 1_000_000_000), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_a_count_of_32_bits_is_followed_over_its_wraps(increments: list[int], first: int) -> None:
    count, raw = RunningCount(2e9), first
    count.add(raw, 0.0)
    for at, step in enumerate(increments):
        raw += step
        assert count.add(raw % 2**32, at + 1.0)
    assert count.value == raw


def test_a_wrong_figure_adds_nothing_and_a_restart_goes_on() -> None:
    count = RunningCount(1000.0)
    assert count.add(10**12, 0.0)
    assert count.add(10**12 + 500, 1.0)
    assert not count.add(0, 2.0)  # wrong once
    assert count.add(10**12 + 1000, 3.0)
    assert not count.add(5, 4.0)  # started again
    assert count.add(105, 5.0)
    assert count.value == 10**12 + 1100


def test_power_is_the_slope_of_energy() -> None:
    power = MeanPower()
    assert power.add(0.0, 0.0) is None
    assert power.add(0.5, 35_000.0) is None
    assert power.add(1.0, 70_000.0) == 70_000.0
    assert power.add(1.5, 105_000.0) == 70_000.0
    assert power.add(60.0, 105_000.0) is None  # after a pause it is no current figure
