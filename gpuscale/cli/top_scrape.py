"""What ``gpuscale top`` knows of an endpoint: two scrapes, and what happened between them."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from gpuscale import catalogue
from gpuscale.errors import ConfigurationError

TIMEOUT = 3.0
LARGEST_PAGE = 16 << 20

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]
"""Series name → labels → value."""


@dataclass(frozen=True)
class Scrape:
    """One page, taken at ``at`` (CLOCK_MONOTONIC seconds)."""

    at: float
    samples: Samples
    info: Mapping[str, str]

    def value(self, name: str, labels: Labels = ()) -> float | None:
        """Of one series."""
        return self.samples.get(name, {}).get(labels)

    def total(self, name: str) -> float | None:
        """Over all label values; None where there is no such series."""
        values = self.samples.get(name)
        return sum(values.values()) if values else None


@dataclass(frozen=True)
class GpuView:
    """One GPU. What is not known is None."""

    uuid: str
    name: str
    minor_number: str
    up: bool
    utilization_percent: float | None
    """Mean between the two looks, from the counter; else the last window's."""
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    temperature_celsius: float | None
    power_watts: float | None


@dataclass(frozen=True)
class EndpointView:
    """One endpoint. ``error`` says why there is nothing else."""

    url: str
    error: str | None = None
    info: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[GpuView, ...] = ()
    in_flight: float | None = None
    mean_in_flight: float | None = None
    requests_per_second: float | None = None
    errors_per_second: float | None = None
    """Of them answered with 5xx."""
    mean_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types; what is not known is null."""
        return asdict(self)


class Scraper:
    """Looks at several endpoints at once. Raises ConfigurationError for a file that cannot be read."""

    def __init__(self, urls: Sequence[str], *, token_file: str | None = None, ca_file: str | None = None) -> None:
        self.urls = tuple(dict.fromkeys(urls))
        self._headers = {"Accept": "text/plain", "User-Agent": "gpuscale-top"}
        if token_file is not None:
            try:
                self._headers["Authorization"] = f"Bearer {Path(token_file).read_text().strip()}"
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"--token-file {token_file!r} cannot be read: {error}") from None
        self._opener = _opener(ca_file)
        self._last: dict[str, Scrape] = {}
        self._pool = ThreadPoolExecutor(max_workers=min(32, len(self.urls)))

    def look(self) -> list[EndpointView]:
        """Scrape all and compare with the look before."""
        return list(self._pool.map(self._look_at, self.urls))

    def _look_at(self, url: str) -> EndpointView:
        before = self._last.pop(url, None)
        try:
            request = urllib.request.Request(url, headers=self._headers)
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                page = answer.read(LARGEST_PAGE).decode("utf-8")
            now = self._last[url] = parse(page, monotonic())
        except (OSError, ValueError, http.client.HTTPException) as error:
            return EndpointView(url, error=_reason(error))
        return compare(url, before, now)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _opener(ca_file: str | None) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # pods are not behind one
    if ca_file is not None:
        import ssl

        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ConfigurationError(f"--ca-file {ca_file!r} must hold PEM certificates: {error}") from None
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def parse(page: str, at: float) -> Scrape:
    """A page of the text format. Raises ValueError for another one."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    info: Mapping[str, str] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == catalogue.INFO.name:
                info = dict(sample.labels)
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return Scrape(at, samples, info)


def compare(url: str, before: Scrape | None, now: Scrape) -> EndpointView:
    """What ``now`` says, with the rates since ``before``."""
    gpus = tuple(_gpu(labels, before, now) for labels in now.samples.get(catalogue.UP.name, {}))
    duration = f"{catalogue.REQUEST_DURATION.name}_"
    requests = _rate(before, now, catalogue.REQUESTS.name)
    seconds, ended = _rate(before, now, f"{duration}sum"), _rate(before, now, f"{duration}count")
    return EndpointView(
        url,
        info=now.info,
        gpus=tuple(sorted(gpus, key=lambda gpu: (gpu.minor_number.zfill(4), gpu.uuid))),
        in_flight=now.value(catalogue.REQUESTS_IN_FLIGHT.name),
        mean_in_flight=_rate(before, now, catalogue.IN_FLIGHT_SECONDS.name),
        requests_per_second=requests,
        errors_per_second=_rate(before, now, catalogue.REQUESTS.name, status="5"),
        mean_seconds=seconds / ended if seconds is not None and ended else None,
    )


def _gpu(labels: Labels, before: Scrape | None, now: Scrape) -> GpuView:
    def value(series: catalogue.Series) -> float | None:
        return now.value(series.name, labels)

    power = value(catalogue.POWER)
    busy_now = value(catalogue.BUSY_SECONDS)
    busy_before = before.value(catalogue.BUSY_SECONDS.name, labels) if before else None
    utilization = value(catalogue.DUTY_CYCLE)
    if before and busy_now is not None and busy_before is not None and busy_now >= busy_before:
        utilization = min(100.0, 100.0 * (busy_now - busy_before) / (now.at - before.at))
    named = dict(labels)
    up = now.value(catalogue.UP.name, labels) == 1.0
    return GpuView(
        uuid=named.get("uuid", ""),
        name=named.get("name", ""),
        minor_number=named.get("minor_number", ""),
        up=up,
        utilization_percent=utilization if up else None,
        memory_used_bytes=value(catalogue.MEMORY_USED),
        memory_total_bytes=value(catalogue.MEMORY_TOTAL),
        temperature_celsius=value(catalogue.TEMPERATURE),
        power_watts=None if power is None else power / 1000.0,
    )


def _rate(before: Scrape | None, now: Scrape, name: str, status: str = "") -> float | None:
    """Per second over all label values; None without two looks, or where a restart set the counter back."""
    values = now.samples.get(name)
    if before is None or values is None:
        return None
    earlier = before.samples.get(name, {})
    increase = 0.0
    for labels, value in values.items():
        if dict(labels).get("status", "").startswith(status):
            step = value - earlier.get(labels, 0.0)
            if step < 0:
                return None
            increase += step
    return increase / (now.at - before.at)
