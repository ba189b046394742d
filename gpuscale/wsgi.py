"""The WSGI middleware: counts each request of an app once, until its last body byte or ``close()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpuscale.catalogue import UNMATCHED_ROUTE
from gpuscale.publish.publication import Publication
from gpuscale.requests.routes import wsgi_route
from gpuscale.settings import METRICS_PATHS

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

COUNTED = "gpuscale.counted"
"""In the environ of a request that a middleware counts already: mounting two is harmless."""
CLIENT_CLOSED_REQUEST = 499


class MetricsMiddleware:
    """``app.wsgi_app = gpuscale.wsgi.MetricsMiddleware(app.wsgi_app)``, or around any WSGI callable.

    Options are those of :class:`gpuscale.settings.Settings` and ``registry``; a wrong one raises
    ConfigurationError here. The metrics endpoint starts at once, but in the master of a pre-fork server that
    loads the app before it forks (gunicorn --preload) with each worker.
    """

    def __init__(self, app: App, *, publication: Publication | None = None, **options: Any) -> None:
        self.app = app
        self.publication = publication or Publication.shared(**options)
        self._on_app = self.publication.settings.on_app
        self._excluded = frozenset(self.publication.settings.excluded_paths)
        self.publication.start_in_workers()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in self._excluded or COUNTED in environ:
            if self._on_app and path in METRICS_PATHS:
                self.publication.start()
                return self.publication.pages.respond_wsgi(environ, start_response)
            return self.app(environ, start_response)
        if not self.publication.running:
            self.publication.start()
        environ[COUNTED] = True
        request = _Request(self.publication, environ, start_response)
        try:
            return request.follow(self.app(environ, request.start_response))
        except BaseException:  # TypeError, where the app returned what cannot be iterated
            request.end(500)
            raise


class _Request:
    """One request's accounting; it ends once, whoever says so first."""

    __slots__ = ("_accounting", "_environ", "_route", "_start_response", "_started", "ended", "status")

    def __init__(self, publication: Publication, environ: Environ, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response
        self._route = UNMATCHED_ROUTE
        self.status = 500
        self.ended = False
        self._accounting = publication.accounting
        self._started = publication.accounting.begin()

    def start_response(self, status: str, headers: Any, *exc_info: Any) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        # Flask takes its request out of the environ before it returns, so this is the time to look.
        self._route = wsgi_route(self._environ)
        return self._start_response(status, headers, *exc_info)

    def follow(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body, ending the request when it is exhausted or closed."""
        wrapper = self._environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            # The server recognises its own file wrapper and sends the file without reading it (sendfile):
            # the object must stay what it is, so the end is hung on its close().
            close = getattr(body, "close", None)
            body.close = self._closing(close)  # type: ignore[attr-defined]
            return body
        return _SizedBody(self, body) if hasattr(body, "__len__") else _Body(self, body)

    def _closing(self, close: Callable[[], object] | None) -> Callable[[], None]:
        def closing() -> None:
            try:
                if close is not None:
                    close()
            finally:
                self.end(self.status)

        return closing

    def end_early(self) -> None:
        """Closed before it was exhausted: the client went away, unless no body was due at all."""
        bodiless = self._environ.get("REQUEST_METHOD") == "HEAD" or self.status in (204, 304)
        self.end(self.status if bodiless else CLIENT_CLOSED_REQUEST)

    def end(self, status: int) -> None:
        if not self.ended:
            self.ended = True
            self._accounting.end(self._started, self._environ.get("REQUEST_METHOD", ""), self._route, status)

    def abandon(self) -> None:
        """The server dropped the body without closing it, and the garbage collector says so."""
        if not self.ended:
            self.ended = True
            method = self._environ.get("REQUEST_METHOD", "")
            self._accounting.abandon(self._started, method, self._route, CLIENT_CLOSED_REQUEST)


class _Body:
    """The app's iterable; knows its last byte."""

    __slots__ = ("_body", "_iterator", "_request")

    def __init__(self, request: _Request, body: Iterable[bytes]) -> None:
        self._request = request
        self._body = body
        self._iterator = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._iterator)
        except StopIteration:
            self._request.end(self._request.status)
            raise
        except BaseException:
            self._request.end(500)
            raise

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._request.end_early()

    def __del__(self) -> None:
        # A server that never calls close() must not leak a request in flight.
        self._request.abandon()


class _SizedBody(_Body):
    """Of an app that returned a list: servers take a lone chunk's length for Content-Length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
