"""The app: ``create_app()`` puts the model, the batcher, the pages and gpuscale together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

import gpuscale
from bert_intent import model, pages, predict, problems
from bert_intent.batching import Batcher
from bert_intent.cpus import available_cpus, threads_for
from bert_intent.lifecycle import CloseWhileDraining, Lifecycle, drain_before_exit
from bert_intent.model import Classifier
from bert_intent.series import ServiceSeries
from bert_intent.settings import ServiceSettings
from gpuscale.settings import Settings as MetricsSettings

logger = logging.getLogger("bert_intent")

DESCRIPTION = "What does a sentence ask for? A BERT classifier behind HTTP, with metrics that scale it."


class Service:
    """What the routes work with. One per app and process; it starts and ends with the app's lifespan."""

    def __init__(self, settings: ServiceSettings, load: Callable[[], Classifier], registry: CollectorRegistry) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.batcher = Batcher(
            max_batch=settings.max_batch, queue_limit=settings.queue_limit, observer=ServiceSeries(registry)
        )
        self.metrics: gpuscale.Metrics[Any]
        self._load = load

    @property
    def labels(self) -> Sequence[str]:
        """The intents, in the order of the probabilities; empty before the model is loaded."""
        return self.batcher.classifier.labels if self.batcher.classifier else ()

    @property
    def description(self) -> str | None:
        """The model and its device, for people; None before it is loaded."""
        return self.batcher.classifier.description if self.batcher.classifier else None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan: the port opens at once, the model loads meanwhile, and /readyz tells when it is warm."""
        undo = drain_before_exit(self.lifecycle, self.settings.drain_seconds)
        self.batcher.start(self._load, self._loaded)
        try:
            yield
        finally:
            self.lifecycle.drain()
            undo()
            # The server has waited for its requests; what waits here now are those it gave up.
            await asyncio.to_thread(self.batcher.close, 2.0)
            self.metrics.close()

    def _loaded(self, error: BaseException | None) -> None:
        """In the batcher's thread, when the model is warm or cannot be had."""
        if error is None:
            self.lifecycle.loaded()
            return
        self.lifecycle.fail()
        if isinstance(error, model.ModelError):
            logger.error("%s", error)
        else:
            logger.error("the model cannot be loaded", exc_info=error)
        # Without a model this process is of no use to anybody: whoever watches it must see it end.
        os.kill(os.getpid(), signal.SIGTERM)


def check_options() -> None:
    """Raise gpuscale.ConfigurationError for a wrong ``GPUSCALE_*`` variable."""
    MetricsSettings.create()


def create_app(
    settings: ServiceSettings | None = None,
    *,
    load: Callable[[], Classifier] | None = None,
    **metrics_options: Any,
) -> FastAPI:
    """The service as an ASGI app; its Service is ``app.state.service``.

    ``settings``: from the environment unless given. ``load`` replaces the loading of ``settings.model``.
    ``metrics_options`` go to :func:`gpuscale.instrument`. Raises SettingsError, gpuscale.ConfigurationError.
    """
    settings = settings or ServiceSettings.from_environment()
    if load is None:
        threads = settings.threads or threads_for(settings.workers, available_cpus())
        load = partial(model.load, settings, threads)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    service = Service(settings, load, registry)
    app = FastAPI(
        title="BERT intent detection",
        version=gpuscale.__version__,
        description=DESCRIPTION,
        lifespan=service.running,
        # FastAPI's own pages load their scripts from a CDN.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(predict.router)
    app.include_router(pages.router)
    problems.install(app)
    app.add_middleware(CloseWhileDraining, lifecycle=service.lifecycle)
    # The page asks for its figures each second; that is no load to scale by.
    excluded = (*MetricsSettings.create().excluded_paths, pages.FIGURES_PATH)
    service.metrics = gpuscale.instrument(app, registry=registry, **{"excluded_paths": excluded, **metrics_options})
    return app
