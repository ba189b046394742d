"""The table of series: the docs say the same, and so does what is published."""

from __future__ import annotations

import runpy
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gpuscale import catalogue
from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot, snapshot_from_json, snapshot_to_json
from gpuscale.publish.collector import MetricsCollector
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.requests.totals import read_totals

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = GpuReading(
    GpuIdentity("GPU-1", "Test GPU", "0"),
    up=True,
    sample_age_seconds=0.5,
    duty_cycle=42.0,
    busy_seconds=12.5,
    observed_seconds=20.0,
    memory_used_bytes=1,
    memory_total_bytes=2,
    own_memory_used_bytes=3,
    temperature_celsius=50.0,
    power_milliwatts=70000.0,
    energy_joules=8.0,
    fan_speed_percent=30.0,
    pcie_bytes={"transmit": 1.0, "receive": 2.0},
    nvlink_bytes={"transmit": 3.0, "receive": 4.0},
    utilization_method="samples",
    errors={"GPU_IS_LOST": 2},
)


def test_the_docs_are_the_table() -> None:
    page = runpy.run_path(str(ROOT / "docs/make_metrics_table.py"))["page"]()
    assert (ROOT / "docs/metrics.md").read_text() == page, "run: python docs/make_metrics_table.py"


def test_every_series_of_the_table_is_published_with_its_type_and_labels() -> None:
    requests = RequestAccounting()
    requests.end(requests.begin(), "GET", "/x", 200)
    totals = read_totals(requests.slab)
    totals.loop_lag = 0.1
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: GpuSnapshot("nvml", (FULL,)), lambda: totals))
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    for series in catalogue.CATALOGUE:
        suffix = {"counter": "_total"}.get(series.type, "")
        family = families[series.name.removesuffix(suffix)]
        assert family.type == ("gauge" if series.type == "info" else series.type)
        assert family.documentation == series.help
        assert family.samples, series.name
        assert set(family.samples[0].labels) - {"le"} == set(series.labels)
    assert len(families) == len(catalogue.CATALOGUE)


def test_what_is_unknown_is_absent() -> None:
    dark = GpuReading(GpuIdentity("GPU-1", "Test GPU", "0"), False)
    collector = MetricsCollector(lambda: GpuSnapshot("nvml", (dark,)))
    samples = [sample for family in collector.collect() for sample in family.samples]
    assert {sample.name for sample in samples} == {"nvidia_gpu_num_devices", "nvidia_gpu_up", "gpuscale_info"}
    assert {sample.value for sample in samples if sample.name.startswith("nvidia")} == {0.0}


def test_a_snapshot_survives_json() -> None:
    snapshot = GpuSnapshot("nvml", (FULL,), {"UNKNOWN": 1}, "nvml")
    assert snapshot_from_json(snapshot_to_json(snapshot)) == snapshot


def test_the_readme_names_every_option() -> None:
    from gpuscale.settings import Settings

    readme = (ROOT / "README.md").read_text()
    for name in Settings.__dataclass_fields__:
        assert f"`{name}`" in readme, name
        assert f"`GPUSCALE_{name.upper()}`" in readme, name
