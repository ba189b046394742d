"""Series from snapshots: the collector that prometheus_client asks at each scrape. It calls no driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import gpuscale
from gpuscale import catalogue
from gpuscale.catalogue import OVERFLOW_ROUTE, Series
from gpuscale.gpu.reading import GpuReading, GpuSnapshot
from gpuscale.requests.totals import RequestTotals

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

GPU_GAUGES: tuple[tuple[Series, str], ...] = (
    (catalogue.DUTY_CYCLE, "duty_cycle"),
    (catalogue.MEMORY_USED, "memory_used_bytes"),
    (catalogue.MEMORY_TOTAL, "memory_total_bytes"),
    (catalogue.TEMPERATURE, "temperature_celsius"),
    (catalogue.POWER, "power_milliwatts"),
    (catalogue.FAN_SPEED, "fan_speed_percent"),
    (catalogue.OWN_MEMORY_USED, "own_memory_used_bytes"),
    (catalogue.SAMPLE_AGE, "sample_age_seconds"),
    (catalogue.BUSY_SECONDS, "busy_seconds"),
    (catalogue.OBSERVED_SECONDS, "observed_seconds"),
    (catalogue.ENERGY, "energy_joules"),
)
"""Series with one value per GPU, and the field of :class:`GpuReading` it comes from."""


class MetricsCollector:
    """A prometheus_client collector over what ``snapshot`` and ``totals`` return at each scrape.

    ``totals`` is None where no requests are counted (a sidecar without a proxy); ``buckets`` are the duration
    histogram's upper bounds in seconds. ``mode`` is ``in-process`` or ``sidecar``.
    """

    def __init__(
        self,
        snapshot: Callable[[], GpuSnapshot],
        totals: Callable[[], RequestTotals] | None = None,
        *,
        buckets: tuple[float, ...] = catalogue.DEFAULT_BUCKETS,
        mode: str = "in-process",
    ) -> None:
        self._snapshot = snapshot
        self._totals = totals
        self._bounds = [*(_format_bound(bound) for bound in buckets), "+Inf"]
        self._mode = mode
        self._silence = threading.local()

    def describe(self) -> Iterator[Metric]:
        """The families without samples, so that a registry finds a name that is taken already."""
        for series in catalogue.CATALOGUE:
            yield _family(series)

    def collect(self) -> Iterator[Metric]:
        """The families at this instant; what is not known is absent."""
        if getattr(self._silence, "on", False):
            return
        snapshot = self._snapshot()
        yield self._info(snapshot)
        yield from _gpu_families(snapshot)
        if self._totals is not None:
            yield from self._request_families(self._totals())

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Meanwhile :meth:`collect` has nothing for this thread."""
        self._silence.on = True
        try:
            yield
        finally:
            self._silence.on = False

    def _info(self, snapshot: GpuSnapshot) -> Metric:
        family = _family(catalogue.INFO)
        values = (
            gpuscale.__version__, self._mode, snapshot.source, snapshot.utilization_methods, snapshot.decided_by,
        )  # fmt: skip
        labels = dict(zip(catalogue.INFO.labels, values, strict=True))
        family.add_sample(catalogue.INFO.name, labels, 1.0)
        return family

    def _request_families(self, totals: RequestTotals) -> Iterator[Metric]:
        yield _single(catalogue.REQUESTS_IN_FLIGHT, totals.in_flight)
        yield _single(catalogue.IN_FLIGHT_SECONDS, totals.in_flight_seconds)
        requests = _family(catalogue.REQUESTS)
        for labels, count in totals.requests.items():
            # The overflow's series exists in every slab; nobody needs it before it is used.
            if count or labels[1] != OVERFLOW_ROUTE:
                requests.add_sample(catalogue.REQUESTS.name, _labels(catalogue.REQUESTS, labels), count)
        yield requests
        durations = _family(catalogue.REQUEST_DURATION)
        for key, values in totals.durations.items():
            if len(values) == len(self._bounds) + 1 and (any(values) or key[1] != OVERFLOW_ROUTE):
                self._add_histogram(durations, _labels(catalogue.REQUEST_DURATION, key), values)
        yield durations
        if totals.loop_lag is not None:
            yield _single(catalogue.EVENT_LOOP_LAG, totals.loop_lag)

    def _add_histogram(self, family: Metric, labels: dict[str, str], values: list[float]) -> None:
        name = catalogue.REQUEST_DURATION.name
        cumulative = list(accumulate(values[:-1]))
        for bound, count in zip(self._bounds, cumulative, strict=True):
            family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
        family.add_sample(f"{name}_count", labels, cumulative[-1])
        family.add_sample(f"{name}_sum", labels, values[-1])


def _gpu_families(snapshot: GpuSnapshot) -> Iterator[Metric]:
    yield _single(catalogue.NUM_DEVICES, snapshot.num_devices)
    up = _family(catalogue.UP)
    gpus = [(gpu, _gpu_labels(gpu)) for gpu in snapshot.gpus]
    for gpu, labels in gpus:
        up.add_sample(catalogue.UP.name, labels, float(gpu.up))
    yield up
    for series, attribute in GPU_GAUGES:
        family = _family(series)
        for gpu, labels in gpus:
            value = getattr(gpu, attribute)
            if value is not None:
                family.add_sample(series.name, labels, float(value))
        yield family
    for series, attribute in ((catalogue.PCIE_BYTES, "pcie_bytes"), (catalogue.NVLINK_BYTES, "nvlink_bytes")):
        family = _family(series)
        for gpu, labels in gpus:
            for direction, count in (getattr(gpu, attribute) or {}).items():
                family.add_sample(series.name, {**labels, "direction": direction}, count)
        yield family
    errors = _family(catalogue.READ_ERRORS)
    for reason, count in _summed([snapshot.errors, *(gpu.errors for gpu in snapshot.gpus)]).items():
        errors.add_sample(catalogue.READ_ERRORS.name, {"reason": reason}, count)
    yield errors


def _gpu_labels(gpu: GpuReading) -> dict[str, str]:
    identity = gpu.identity
    return {"minor_number": identity.minor_number, "uuid": identity.uuid, "name": identity.name}


def _family(series: Series) -> Metric:
    from prometheus_client import Metric

    # A family's name is a counter's without _total, an info's without _info; so has OpenMetrics it.
    suffix = {"counter": "_total", "info": "_info"}.get(series.type, "")
    return Metric(series.name.removesuffix(suffix), series.help, series.type)


def _single(series: Series, value: float) -> Metric:
    family = _family(series)
    family.add_sample(series.name, {}, float(value))
    return family


def _labels(series: Series, values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(series.labels, values, strict=True))


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for part in parts:
        for reason, count in part.items():
            totals[reason] = totals.get(reason, 0) + count
    return totals


def _format_bound(bound: float) -> str:
    from prometheus_client.utils import floatToGoString

    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


class Registries:
    """Our collector and registries published as one; a family that two of them have is taken once."""

    def __init__(self, own: MetricsCollector, *registries: Collector) -> None:
        self._own, self._registries = own, registries

    def collect(self) -> Iterator[Metric]:
        """Our families, then those of the registries in turn."""
        seen: set[str] = set()
        for family in self._own.collect():
            seen.add(family.name)
            yield family
        with self._own.silent():  # it is in a registry, too: the workers' numbers need not be added up twice
            for registry in self._registries:
                for family in registry.collect():
                    if family.name not in seen:
                        seen.add(family.name)
                        yield family


def render(collectors: Any, accept: str) -> tuple[bytes, str]:
    """``(body, content type)`` in the format that the scraper's ``Accept`` header asks for: text or OpenMetrics."""
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return encode(collectors), content_type
