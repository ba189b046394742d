"""Our encoder writes what prometheus_client's would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot
from gpuscale.publish import exposition
from gpuscale.publish.collector import MetricsCollector
from gpuscale.publish.exposition import Encoder
from gpuscale.requests.totals import RequestTotals

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "\\", "\n", 'a"b\\n']
)
VALUES = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**60), 2**60).map(float)


class Given:
    """A registry of these families."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def held_equal(families: list[Metric], encoder: Encoder) -> None:
    registry = Given(families)
    for _ in range(2):  # from the labels' memory, too
        assert encoder.encode(registry.collect(), openmetrics=False) == generate_latest(registry)
        theirs = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        assert encoder.encode(registry.collect(), openmetrics=True) == theirs


@given(st.text(min_size=1), st.text(), st.text(), VALUES, TEXT)
def test_our_series(uuid: str, name: str, route: str, value: float, help_text: str) -> None:
    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    reading = GpuReading(
        GpuIdentity(clean(uuid), clean(name), "0"), True, sample_age_seconds=value, duty_cycle=value,
        busy_seconds=value, memory_used_bytes=2**40, pcie_bytes={"transmit": value, "receive": 0.0},
        errors={"GPU_IS_LOST": 3}, utilization_method="samples",
    )  # fmt: skip
    totals = RequestTotals(1.0, value, {("GET", clean(route), "200"): value}, {("GET", clean(route)): [1.0] * 14}, 0.5)
    collector = MetricsCollector(lambda: GpuSnapshot("nvml", (reading,)), lambda: totals)
    families = list(collector.collect())
    families[0].documentation = help_text
    held_equal(families, Encoder())


@given(
    st.lists(
        st.tuples(st.sampled_from(["gauge", "counter", "info"]), st.dictionaries(st.sampled_from("abc"), TEXT), VALUES)
    )
)
def test_any_labels_and_values(rows: list[tuple[str, dict[str, str], float]]) -> None:
    suffix = {"counter": "_total", "info": "_info", "gauge": ""}
    families = []
    for number, (kind, labels, value) in enumerate(rows):
        family = Metric(f"family_{number}", "help", kind)
        family.add_sample(f"family_{number}{suffix[kind]}", labels, value)
        families.append(family)
    held_equal(families, Encoder())


def test_the_memory_of_labels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MOST_LABELS", 10)
    encoder = Encoder()
    family = Metric("family", "help", "gauge")
    for number in range(100):
        family.add_sample("family", {"a": str(number)}, 1.0)
    held_equal([family], encoder)
    assert len(encoder._labels) <= 10
