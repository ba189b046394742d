"""What starts and closes a process's part in publishing: its numbers, its place among the workers, the leader's duties.

One thread per process keeps the membership in the group of workers; in the one that leads it also runs
:class:`gpuscale.publish.leader.Leader`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpuscale.gpu.reading import GpuSnapshot
from gpuscale.publish.http_credentials import TlsFiles, TokenFile
from gpuscale.publish.pages import Pages
from gpuscale.publish.supervisor import is_prefork_master
from gpuscale.publish.workers import PortTakenError, WorkerGroup
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.requests.loop_lag import LoopLag
from gpuscale.requests.slab import Slab
from gpuscale.requests.totals import RequestTotals, read_totals
from gpuscale.settings import Settings, endpoint_url

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gpuscale.publish.leader import Leader

logger = logging.getLogger("gpuscale")

KEEP_UP_SECONDS = 0.5
"""How often a worker looks whether the leader's place is free, and the leader for the dead: a takeover ≤ 2 s."""
JOIN_AGAIN_SECONDS = 5.0
"""After which it is tried again to join, when another service has the port."""
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
        """Whether there is nothing to start: it publishes, or was closed for good."""
        self._given_registry = registry
        self._more_registries: list[CollectorRegistry] = []
        self.pages = Pages(self.render, self.snapshot)
        self._collectors: Any = None
        self._registered = False
        self._reset()
        if settings.tls_cert and settings.tls_key:
            TlsFiles(settings.tls_cert, settings.tls_key)  # what is wrong with them is said now, not when it starts
        if settings.token_file:
            TokenFile(settings.token_file)
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._group: WorkerGroup | None = None
        self._leader: Leader | None = None
        self._join_at: float | None = None
        """When to try again to join, while another service has the port."""
        self._complained = ""
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
        key = (settings.port, settings.on_app)
        existing = _shared.get(key)
        if existing is None:
            existing = _shared[key] = cls(settings, registry)
        else:
            existing.settings.require(settings)
            if registry is not None and registry is not existing.registry:
                existing._more_registries.append(registry)
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
        own = self._leader.url if self._leader is not None else None
        return own or endpoint_url(self.settings.address, self.settings.port, tls=bool(self.settings.tls_cert))

    def start(self) -> None:
        """Begin to publish; harmless when it is on. Never raises for what the app can live without."""
        with self._lock:
            if self.running:
                return
            self._stop = threading.Event()
            self._start_after_fork = False  # what this process forks from now on are no workers
            self._join()
            self._collect()
            self.running = True
            self._keep_up()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="gpuscale", daemon=True)
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
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._stop.set()
        thread.join(timeout=2.0)  # it may be waiting for the lock
        with self._lock:
            self._step_down()
            self._unregister()
            group, self._group = self._group, None
            if group is not None:
                with group.leaving() as numbers_stay:
                    alone = Slab()
                    self.loop_lag.move_to(alone.slots)
                    self.accounting.move_to(alone, counts=not numbers_stay)
        atexit.unregister(self.close)
        for key in [key for key, publication in _shared.items() if publication is self]:
            del _shared[key]

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` ended it and nothing has begun it anew."""
        return self.running and self._thread is None

    def reopen(self) -> None:
        """Publish again after :meth:`close`."""
        self.allow_start()
        self.start()

    def allow_start(self) -> None:
        """After :meth:`close`: let whatever starts it (the app's lifespan, its next request) do so again."""
        with self._lock:
            if self._thread is None:
                self.running = False
                if self.settings.port or self.settings.on_app:
                    _shared.setdefault((self.settings.port, self.settings.on_app), self)

    def totals(self) -> RequestTotals:
        """The request numbers of all workers of the pod."""
        group = self._group
        self.accounting.flush()
        return read_totals(self.accounting.slab) if group is None else group.totals()

    def snapshot(self) -> GpuSnapshot:
        """The GPUs of the pod, whichever worker reads them. Calls no driver."""
        from gpuscale.publish.leader import followed

        leader = self._leader
        return leader.snapshot() if leader is not None else followed(self.settings, self._group)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics page: ``(body, content type)``."""
        from gpuscale.publish.collector import render

        return render(self._collectors, accept)

    def _join(self) -> None:
        """Become a member of the pod's workers; alone where that cannot be."""
        settings = self.settings
        name = f"app-{settings.port}" if settings.on_app else str(settings.port)
        self._join_at = None
        self.accounting.sharing = False
        try:
            group = WorkerGroup(name if settings.port else None, settings.run_dir)
            slab = group.join()
        except PortTakenError as error:
            what = "metrics of this process alone" if settings.on_app else "no metrics are published"
            self._complain(f"{what}: {error}. Trying again")
            self._join_at = monotonic() + JOIN_AGAIN_SECONDS
        except OSError as error:
            logger.warning("metrics of this process alone: workers cannot share (%s); set GPUSCALE_RUN_DIR", error)
        else:
            self.accounting.sharing = group.may_have_others
            self.loop_lag.move_to(slab.slots)
            self.accounting.move_to(slab)
            self._group = group

    def _collect(self) -> None:
        from gpuscale.publish.collector import MetricsCollector, Registries

        if not self._registered:
            self._collector = MetricsCollector(self.snapshot, self.totals, buckets=self.settings.buckets)
            with contextlib.suppress(ValueError):  # another publication of this process has registered the same names
                self.registry.register(self._collector)
                self._registered = True
        self._collectors = Registries(self._collector, self.registry, *self._more_registries)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(KEEP_UP_SECONDS):
            with self._lock:
                if not stop.is_set():
                    self._keep_up()

    def _keep_up(self) -> None:
        """The worker's duties; what fails is tried again at the next turn, and said once."""
        from gpuscale.publish.leader import Leader

        try:
            self.accounting.flush()
            if self._join_at is not None and monotonic() >= self._join_at:
                self._join()
                if self._group is not None:
                    self._step_down()
            if self._leader is None and self._may_lead():
                self._leader = Leader(self.settings, self._group, self.pages)
            if self._leader is not None:
                self._leader.keep_up()
            if self._join_at is None:
                self._complained = ""
        except Exception as error:
            self._complain(f"the keeping of the workers' numbers failed, trying again: {error!r}")

    def _may_lead(self) -> bool:
        if self._group is not None:
            return self._group.try_lead()
        return self._join_at is None or self.settings.on_app

    def _complain(self, message: str) -> None:
        if message != self._complained:
            self._complained = message
            logger.error("%s", message)

    def _step_down(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.close()

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            with contextlib.suppress(KeyError):  # the registry's owner did it
                self.registry.unregister(self._collector)

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's is ours, and numbers begin at zero."""
        leader, group, start = self._leader, self._group, self._start_after_fork
        self.running = False
        self._reset()
        self.accounting.move_to(Slab(), fresh=True)
        self.loop_lag = LoopLag(self.accounting.slab.slots)
        with contextlib.suppress(Exception):  # the parent may have been in the middle of anything
            if group is not None:
                group.forget_inherited()
        with contextlib.suppress(Exception):
            if leader is not None:
                leader.close_inherited()
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
