"""``gpuscale.instrument``: the middlewares mounted the way each framework wants it, by one call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gpuscale.errors import ConfigurationError
from gpuscale.publish.publication import Publication
from gpuscale.requests.routes import ROUTE_KEY
from gpuscale.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gpuscale.gpu.reading import GpuSnapshot

App = TypeVar("App")
_HANDLE = "_gpuscale_metrics"


class Metrics(Generic[App]):
    """What :func:`instrument` returns: where the metrics are, and what ends it."""

    def __init__(self, app: App, publication: Publication) -> None:
        self.app = app
        """The app to serve. For Starlette, FastAPI, Litestar, Quart and Flask the very app that was given; a bare
        ASGI or WSGI callable (Django's too) cannot be changed: serve this one instead."""
        self._publication = publication

    @property
    def metrics_url(self) -> str:
        """Where the metrics are; ``/metrics`` when they are on the app itself. With port 0 this starts them."""
        if self._publication.settings.port == 0 and not self._publication.running:
            self._publication.start()
        return self._publication.url or "/metrics"

    @property
    def registry(self) -> CollectorRegistry:
        """The prometheus_client registry whose metrics are published beside ours: put your own there."""
        return self._publication.registry

    def snapshot(self) -> GpuSnapshot:
        """The GPUs' last readings."""
        return self._publication.snapshot()

    @property
    def requests_in_flight(self) -> int:
        """Requests in flight over all workers of the pod."""
        return int(self._publication.totals().in_flight)

    def start(self) -> None:
        """Publish now, not only when the app starts; also after :meth:`close`."""
        self._publication.reopen()

    def _resume(self) -> None:
        if self._publication.closed:
            self._publication.allow_start()
            self._publication.start_in_workers()

    def close(self) -> None:
        """Close the endpoint and end the threads. The app goes on as it was."""
        self._publication.close()


def instrument(app: App, *, registry: CollectorRegistry | None = None, **options: Any) -> Metrics[App]:
    """Mount the metrics middleware on an ASGI or WSGI app and publish its metrics.

    ``app``: FastAPI, Starlette, Litestar, Quart or Flask (changed in place), or any ASGI or WSGI callable, Django's
    handlers included (serve ``instrument(app).app``). A second call for the same app returns the first's handle, with
    the first's options; after ``close()`` it publishes again.

    ``registry``: prometheus_client registry to publish beside our series (the global one). ``options`` (each
    also as ``GPUSCALE_<OPTION>`` in the environment): ``port``, ``address``, ``gpu`` (``nvml``, ``simulated``,
    ``none``), ``excluded_paths``, ``buckets``, ``on_app``, ``run_dir``, ``gpu_interval``, ``gpu_staleness``,
    ``gpu_window``, ``tls_cert``, ``tls_key``, ``token_file``; see :class:`gpuscale.settings.Settings`.

    Raises ConfigurationError, naming the option, for a value that cannot be; TypeError for what is no app.
    """
    existing: Metrics[App] | None = getattr(app, _HANDLE, None)
    if existing is not None:
        Settings.create(**options)
        existing._resume()
        return existing
    if not callable(app):
        raise TypeError(f"app must be an ASGI or WSGI callable, not {type(app).__name__}")
    publication = Publication.shared(registry=registry, **options)
    mounted = _mount(app, publication)
    handle = Metrics(mounted, publication)
    for target in (app, mounted):
        try:
            setattr(target, _HANDLE, handle)
        except AttributeError:  # a callable without a __dict__: then only the wrapped one remembers
            pass
    return handle


def _mount(app: Any, publication: Publication) -> Any:
    classes = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(app).__mro__}
    if "starlette.Starlette" in classes:
        return _mount_starlette(app, publication)
    if "litestar.Litestar" in classes:
        middleware = app.asgi_handler = _asgi(app.asgi_handler, publication)
        app.on_startup.insert(0, middleware.startup)  # Litestar keeps its lifespan to itself
        app.on_shutdown.append(middleware.shutdown)
        return app
    if "quart.Quart" in classes:
        app.before_request(_note_quart_route)
        app.asgi_app = _asgi(app.asgi_app, publication)
        return app
    if "flask.Flask" in classes:
        app.wsgi_app = _wsgi(app.wsgi_app, publication)
        return app
    if "django.BaseHandler" in classes:
        _note_django_route(app)
    return _asgi(app, publication) if is_asgi(app) else _wsgi(app, publication)


def _mount_starlette(app: Any, publication: Publication) -> Any:
    from gpuscale.asgi import MetricsMiddleware

    try:
        app.add_middleware(MetricsMiddleware, publication=publication)
    except RuntimeError:
        raise ConfigurationError("app has started already: instrument it before its first request") from None
    return app


def _asgi(app: Any, publication: Publication) -> Any:
    from gpuscale.asgi import MetricsMiddleware

    return MetricsMiddleware(app, publication=publication)


def _wsgi(app: Any, publication: Publication) -> Any:
    from gpuscale.wsgi import MetricsMiddleware

    return MetricsMiddleware(app, publication=publication)


def is_asgi(app: Any) -> bool:
    """Whether a callable speaks ASGI (a coroutine function of scope, receive, send), else WSGI."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None)):  # noqa: B004
        return True
    try:
        return len(inspect.signature(app).parameters) == 3
    except (TypeError, ValueError):
        return False


async def _note_quart_route() -> None:
    from quart import request

    if request.url_rule is not None:
        request.scope[ROUTE_KEY] = str(request.url_rule.rule)


def _note_django_route(handler: Any) -> None:
    """Django tells the route to its own request only; note it in the scope or environ when it is resolved."""
    resolve = handler.resolve_request

    def resolve_request(request: Any) -> Any:
        match = resolve(request)
        carrier = getattr(request, "scope", None)
        if carrier is None:
            carrier = request.environ
        carrier[ROUTE_KEY] = "/" + str(match.route)
        return match

    handler.resolve_request = resolve_request
