"""What a sidecar consists of: the GPU sampler, the endpoint, and a proxy where one is asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from gpuscale.errors import GpuscaleError
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import GpuSource
from gpuscale.publish.collector import MetricsCollector
from gpuscale.publish.endpoint import MetricsServer, Response
from gpuscale.publish.exposition import Encoder
from gpuscale.publish.pages import fine, gpu_trouble, unavailable
from gpuscale.settings import Settings

if TYPE_CHECKING:
    from gpuscale.requests.totals import RequestTotals
    from gpuscale.sidecar.proxy import Proxy

log = logging.getLogger("gpuscale.sidecar")

STOP_SECONDS = 0.5
"""How long a hanging driver call is waited for at the end."""


class Sidecar:
    """Publishes what ``source`` reads, and what ``proxy`` counts, until :meth:`close`."""

    def __init__(self, settings: Settings, source: GpuSource, proxy: Proxy | None = None) -> None:
        self._settings = settings
        self._proxy = proxy
        self._sampler = Sampler(
            source,
            interval=settings.gpu_interval,
            staleness=settings.gpu_staleness,
            window=settings.gpu_window,
        )
        self._collector = MetricsCollector(
            self._sampler.snapshot,
            self._totals if proxy is not None else None,
            buckets=settings.buckets,
            mode="sidecar",
        )
        self._encoder = Encoder()
        self._server = MetricsServer(
            address=settings.address,
            port=settings.port,
            handlers={"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz},
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            token_file=settings.token_file,
        )
        self._started = 0.0
        self._draining = False

    @property
    def url(self) -> str:
        """Of the metrics."""
        return self._server.url

    def start(self) -> None:
        """Begin to sample, serve and forward. Raises GpuscaleError when a port cannot be opened."""
        self._started = monotonic()
        self._sampler.start()
        if self._proxy is not None:
            self._proxy.start()  # before the endpoint, whose /readyz says that it forwards
        try:
            self._server.start()
        except OSError as error:
            raise GpuscaleError(
                f"the metrics port {self._settings.port} on {self._settings.address} cannot be opened: {error}; "
                "choose another one with --port or GPUSCALE_PORT"
            ) from None
        log.info("metrics at %s", self.url)

    def drain(self, seconds: float) -> None:
        """Say that the pod is not ready and let the proxy's requests end, at most ``seconds`` long."""
        self._draining = True
        if self._proxy is not None:
            log.info("draining %d requests", self._proxy.active)
            self._proxy.drain(seconds)

    def close(self) -> bool:
        """Stop all of it; False if a driver call hangs, so that only :func:`leave` ends the process for sure."""
        if self._proxy is not None:
            self._proxy.close()
        self._server.close(timeout=0.5)
        return self._sampler.stop(timeout=STOP_SECONDS)

    def _totals(self) -> RequestTotals:
        from gpuscale.requests.totals import read_totals

        assert self._proxy is not None
        return read_totals(self._proxy.accounting.slab)

    def _metrics(self, headers: Mapping[str, str]) -> Response:
        from prometheus_client.exposition import choose_encoder

        _, content_type = choose_encoder(headers.get("accept", ""))
        openmetrics = content_type.startswith("application/openmetrics-text")
        return Response(200, content_type, self._encoder.encode(self._collector.collect(), openmetrics=openmetrics))

    def _healthz(self, _: Mapping[str, str]) -> Response:
        trouble = gpu_trouble(self._sampler.snapshot())
        if not trouble and self._proxy is not None and not self._proxy.alive:
            trouble = "the proxy is dead"
        return unavailable(trouble) if trouble else fine()

    def _readyz(self, _: Mapping[str, str]) -> Response:
        if self._draining:
            return unavailable("shutting down")
        # A driver that hangs at its first call must not keep the pod out of its Service for ever.
        waiting = monotonic() - self._started < self._settings.gpu_staleness
        snapshot = self._sampler.snapshot()
        if waiting and not snapshot.gpus and snapshot.why_empty in ("", "no reading yet"):
            return unavailable("the GPUs have not been read yet")
        return fine()


def leave(status: int) -> None:
    """End the process now, with a thread stuck in the driver or without one."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)
