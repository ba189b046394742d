"""What starts and closes a process's part in publishing: its numbers, the endpoint, the GPU sampler.

One thread per process keeps the membership in the group of workers; in the one that leads it also runs the
endpoint (a thread of its own) and the sampler (a thread of its own, the only one that calls the driver).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpuscale.errors import ConfigurationError
from gpuscale.gpu.reading import GpuSnapshot, aged, snapshot_from_json, snapshot_to_json
from gpuscale.publish.pages import Pages
from gpuscale.publish.supervisor import is_prefork_master
from gpuscale.publish.workers import PortTakenError, WorkerGroup
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.requests.loop_lag import LoopLag
from gpuscale.requests.slab import Slab
from gpuscale.requests.totals import RequestTotals, read_totals
from gpuscale.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gpuscale.gpu.sampler import Sampler
    from gpuscale.publish.endpoint import MetricsServer

logger = logging.getLogger("gpuscale")

KEEP_UP_SECONDS = 0.5
"""How often a worker looks whether the leader's place is free, and the leader for the dead: a takeover ≤ 2 s."""
_GPU_FILE = "gpu.json"
_shared: dict[object, Publication] = {}
_all: weakref.WeakSet[Publication] = weakref.WeakSet()


class Publication:
    """The numbers of this process and whatever publishes them. Made by :meth:`shared` or directly.

    ``registry``: a prometheus_client registry to publish beside our series and to register them in; by default
    the global one.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry | None = None) -> None:
        self.settings = settings
        self.accounting = RequestAccounting(buckets=settings.buckets)
        self.loop_lag = LoopLag(self.accounting.slab.slots)
        self.running = False
        self._given_registry = registry
        self.pages = Pages(self.render, self.snapshot)
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._group: WorkerGroup | None = None
        self._leads = False
        self._server: MetricsServer | None = None
        self._bind_failed = False
        self._sampler: Sampler | None = None
        self._collectors: Any = None
        self._registered = False
        self._start_after_fork = False

    @classmethod
    def shared(cls, *, registry: CollectorRegistry | None = None, **options: Any) -> Publication:
        """The process's publication for these options' port; made when there is none yet.

        With port 0 each call makes one of its own. Raises ConfigurationError for a wrong option, and for one
        that differs from the options that the port is published with already.
        """
        settings = Settings.create(**options)
        if settings.port == 0 and not settings.on_app:
            return cls(settings, registry)
        key = "app" if settings.on_app else settings.port
        existing = _shared.get(key)
        if existing is None:
            existing = _shared[key] = cls(settings, registry)
        elif existing.settings != settings:
            differing = next(
                name for name in settings.__dict__ if getattr(settings, name) != getattr(existing.settings, name)
            )
            raise ConfigurationError(
                f"{differing}={getattr(settings, differing)!r}: port {key} is published already with "
                f"{getattr(existing.settings, differing)!r}; use the same options, or another port"
            )
        return existing

    @property
    def registry(self) -> CollectorRegistry:
        """Where an app registers its own metrics to have them on the same endpoint."""
        if self._given_registry is not None:
            return self._given_registry
        from prometheus_client import REGISTRY

        return REGISTRY

    @property
    def url(self) -> str | None:
        """Of the metrics as this process knows it; None when they are on the app itself."""
        if self.settings.on_app:
            return None
        if self._server is not None:
            return self._server.url
        scheme = "https" if self.settings.tls_cert else "http"
        return f"{scheme}://127.0.0.1:{self.settings.port}/metrics"

    def start(self) -> None:
        """Begin to publish; harmless when it is on. Never raises for what the app can live without."""
        with self._lock:
            if self.running:
                return
            self._stop = threading.Event()
            self._join()
            self.running = True
            self._keep_up()
            self._thread = threading.Thread(target=self._run, name="gpuscale", daemon=True)
            self._thread.start()
        atexit.register(self.close)

    def start_in_workers(self) -> None:
        """Start now, or, in a master that forks its workers later, in each of them."""
        if is_prefork_master():
            self._start_after_fork = True
        else:
            self.start()

    def close(self) -> None:
        """End what :meth:`start` began; what was counted stays readable to the other workers."""
        with self._lock:
            if self._thread is None:
                return
            self._stop.set()
            self._thread.join(timeout=2.0)
            self._thread = None
            self._step_down()
            self.accounting.move_to(Slab(), fresh=False)
            self.loop_lag.move_to(self.accounting.slab.slots)
            if self._group is not None:
                self._group.leave()
                self._group = None
        atexit.unregister(self.close)
        for key in [key for key, publication in _shared.items() if publication is self]:
            del _shared[key]

    def reopen(self) -> None:
        """Publish again after :meth:`close`."""
        with self._lock:
            if self._thread is None:
                self.running = False
        self.start()

    def totals(self) -> RequestTotals:
        """The request numbers of all workers of the pod."""
        group = self._group
        self.accounting.flush()
        return read_totals(self.accounting.slab) if group is None else group.totals()

    def snapshot(self) -> GpuSnapshot:
        """The GPUs of the pod, whichever worker reads them. Calls no driver."""
        if self._sampler is not None:
            return self._sampler.snapshot()
        saved = self._group.load(_GPU_FILE) if self._group is not None else None
        if saved is None:
            return GpuSnapshot(source=self.settings.gpu, why_empty="no worker has read the GPUs yet")
        return aged(snapshot_from_json(saved["snapshot"]), monotonic() - saved["at"], self.settings.gpu_staleness)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics page: ``(body, content type)``."""
        from gpuscale.publish.collector import render

        return render(self._collectors, accept)

    def _join(self) -> None:
        """Become a member of the pod's workers; alone where that cannot be."""
        from gpuscale.publish.collector import MetricsCollector, Registries

        port = self.settings.port if not self.settings.on_app else 1
        try:
            group = WorkerGroup(port, self.settings.run_dir)
            slab = group.join()
        except PortTakenError as error:
            logger.error("no metrics are published: %s", error)
            self._bind_failed = True
        except OSError as error:
            logger.warning("metrics of this process alone: workers cannot share (%s); set GPUSCALE_RUN_DIR", error)
        else:
            self.accounting.move_to(slab)
            self.loop_lag.move_to(slab.slots)
            self._group = group
        self.accounting.sharing = self._group is not None and self._group.may_have_others
        collector = MetricsCollector(self.snapshot, self.totals, buckets=self.settings.buckets)
        try:
            self.registry.register(collector)
            self._registered = True
        except ValueError:  # another publication of this process has registered the same names
            pass
        self._collector = collector
        self._collectors = Registries(collector, self.registry)

    def _run(self) -> None:
        while not self._stop.wait(KEEP_UP_SECONDS):
            with self._lock:
                if self._stop.is_set():
                    return
                try:
                    self._keep_up()
                except Exception:
                    logger.exception("gpuscale's keeping of its workers failed; trying again")

    def _keep_up(self) -> None:
        if not self._leads and (self._group is None or self._group.try_lead()):
            self._leads = True
            self._lead()
        if self._leads:
            if self._group is not None:
                self._group.retire_dead()
            if self._server is None and not self.settings.on_app:
                self._open_endpoint()

    def _lead(self) -> None:
        from gpuscale.gpu.sampler import Sampler
        from gpuscale.gpu.source import create_source

        saved = self._group.load(_GPU_FILE) if self._group is not None else None
        settings = self.settings
        self._sampler = Sampler(
            create_source(settings.gpu),
            interval=settings.gpu_interval,
            staleness=settings.gpu_staleness,
            window=settings.gpu_window,
            restored=saved["dump"] if saved else None,
            on_cycle=self._save_gpus,
        )
        self._sampler.start()

    def _save_gpus(self, dump: dict[str, Any]) -> None:
        """For the worker that leads next, and for those that serve /metrics on the app itself."""
        group, sampler = self._group, self._sampler
        if sampler is None:
            return
        snapshot = sampler.snapshot()
        try:
            if group is not None and group.leads:
                saved = {"dump": dump, "snapshot": snapshot_to_json(snapshot), "at": monotonic()}
                group.save(_GPU_FILE, saved)
            if self.settings.handover_dir is not None and snapshot.gpus:
                from gpuscale.gpu.handover import write_handover

                write_handover(self.settings.handover_dir, snapshot)
        except OSError as error:
            logger.warning("the GPUs' state cannot be kept for the next leader or handed over: %s", error)

    def _open_endpoint(self) -> None:
        from gpuscale.publish.endpoint import MetricsServer

        settings = self.settings
        if self._group is None and self._bind_failed:
            return
        server = MetricsServer(
            address=settings.address,
            port=settings.port,
            handlers=self.pages.handlers(),
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            token_file=settings.token_file,
        )
        try:
            server.start()
        except OSError as error:
            if not self._bind_failed:
                logger.error(
                    "metrics port %s cannot be opened (%s); trying again. Set port= or GPUSCALE_PORT to another one",
                    settings.port, error,
                )  # fmt: skip
            self._bind_failed = True
            return
        self._server = server
        self._bind_failed = False
        logger.info("metrics at %s", server.url)

    def _step_down(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._sampler is not None:
            self._sampler.stop(timeout=1.0)
        self._unregister()
        self._server, self._sampler, self._leads = None, None, False

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            try:
                self.registry.unregister(self._collector)
            except KeyError:  # the registry's owner did it
                pass

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's is ours, and numbers begin at zero."""
        server, group, start = self._server, self._group, self._start_after_fork
        if server is not None:
            server.close_inherited()
        if group is not None:
            group.forget_inherited()
        self.running = False
        self._unregister()
        self._reset()
        self.accounting.move_to(Slab(), fresh=True)
        self.loop_lag = LoopLag(self.accounting.slab.slots)
        if start:
            # The master's child is a worker. A moment later, when it has taken on its own user and signals.
            self._start_after_fork = True
            timer = threading.Timer(0.1, self.start)
            timer.daemon = True
            timer.start()


def _after_fork_in_child() -> None:
    for publication in list(_all):
        publication.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
