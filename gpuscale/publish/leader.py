"""What the one worker runs that publishes for all: the endpoint and the GPU sampler."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpuscale.gpu.reading import GpuSnapshot, aged, snapshot_from_json, snapshot_to_json
from gpuscale.publish.folder import GPUS
from gpuscale.publish.pages import Pages
from gpuscale.publish.workers import WorkerGroup
from gpuscale.settings import Settings

if TYPE_CHECKING:
    from gpuscale.publish.endpoint import MetricsServer

logger = logging.getLogger("gpuscale")


class Leader:
    """The endpoint and the sampler, each a thread of its own; the sampler's is the only one that calls the driver.

    ``group`` is None for a process that publishes for itself alone.
    """

    def __init__(self, settings: Settings, group: WorkerGroup | None, pages: Pages) -> None:
        from gpuscale.gpu.sampler import Sampler
        from gpuscale.gpu.source import create_source

        self._settings, self._group, self._pages = settings, group, pages
        self._server: MetricsServer | None = None
        self._complained = False
        saved = group.load(GPUS) if group is not None else None
        self._sampler = Sampler(
            create_source(settings.gpu),
            interval=settings.gpu_interval,
            staleness=settings.gpu_staleness,
            window=settings.gpu_window,
            restored=saved["dump"] if saved else None,
            on_cycle=self._save_gpus,
        )
        self._sampler.start()

    @property
    def url(self) -> str | None:
        """Of the endpoint, once it is open."""
        return self._server.url if self._server is not None else None

    def snapshot(self) -> GpuSnapshot:
        """The GPUs' last readings."""
        return self._sampler.snapshot()

    def keep_up(self) -> None:
        """Open the endpoint if it is not open yet, and take over the numbers of workers that ended."""
        if self._server is None and not self._settings.on_app:
            self._open_endpoint()
        if self._group is not None:
            self._group.retire_dead()

    def close(self) -> None:
        """Close the endpoint and end the threads."""
        if self._server is not None:
            self._server.close()
        self._sampler.stop(timeout=1.0)

    def close_inherited(self) -> None:
        """In a forked child: close its copies of the sockets."""
        if self._server is not None:
            self._server.close_inherited()

    def _open_endpoint(self) -> None:
        from gpuscale.publish.endpoint import MetricsServer

        settings = self._settings
        server = MetricsServer(
            address=settings.address,
            port=settings.port,
            handlers=self._pages.handlers(),
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            token_file=settings.token_file,
        )
        try:
            server.start()
        except OSError as error:
            if not self._complained:
                logger.error(
                    "metrics port %s cannot be opened (%s); trying again. Set port= or GPUSCALE_PORT to another one",
                    settings.port, error,
                )  # fmt: skip
            self._complained = True
            return
        self._server, self._complained = server, False
        logger.info("metrics at %s", server.url)

    def _save_gpus(self, dump: dict[str, Any]) -> None:
        """For the worker that leads next, and for those that serve /metrics on the app. The sampler logs errors."""
        snapshot = self._sampler.snapshot()
        try:
            if self._group is not None and self._group.leads:
                self._group.save(GPUS, {"dump": dump, "snapshot": snapshot_to_json(snapshot), "at": monotonic()})
        finally:
            if self._settings.handover_dir is not None and snapshot.gpus:
                from gpuscale.gpu.handover import write_handover

                write_handover(self._settings.handover_dir, snapshot)


def followed(settings: Settings, group: WorkerGroup | None) -> GpuSnapshot:
    """The GPUs as the worker that leads ``group`` saved them last."""
    saved = group.load(GPUS) if group is not None else None
    if saved is None:
        return GpuSnapshot(source=settings.gpu, why_empty="no worker has read the GPUs yet")
    return aged(snapshot_from_json(saved["snapshot"]), monotonic() - saved["at"], settings.gpu_staleness)
