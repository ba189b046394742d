"""The WSGI middleware: counts each request of an app once, until its last body byte or ``close()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpuscale.catalogue import UNMATCHED_ROUTE
from gpuscale.publish.publication import Publication
from gpuscale.requests.accounting import RequestAccounting
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
        self._accounting = self.publication.accounting
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
        request = _Request(environ, start_response, self._accounting)
        try:
            body = self.app(environ, request.start_response)
            wrapper = environ.get("wsgi.file_wrapper")
            if wrapper is not None and isinstance(wrapper, type) and isinstance(body, wrapper):
                return request.hang_on_close(body)
            request.iterator = iter(body)
        except BaseException:  # TypeError, where the app returned what cannot be iterated
            request.end(500)
            raise
        request.body = body
        if hasattr(body, "__len__"):
            request.__class__ = _SizedRequest
        return request


class _Request:
    """One request and, once the app has answered, its body. One object for both: each costs half a microsecond.

    It ends once: when the body is exhausted, fails, or is closed or dropped.
    """

    __slots__ = ("_accounting", "_environ", "_start_response", "_started", "body", "iterator", "route", "status")

    body: Any
    iterator: Iterator[bytes]

    def __init__(self, environ: Environ, start_response: StartResponse, accounting: RequestAccounting) -> None:
        self._environ = environ
        self._start_response = start_response
        self._accounting: RequestAccounting | None = accounting
        self.status = 500
        self.route = UNMATCHED_ROUTE
        self._started = accounting.begin()

    def start_response(self, line: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        """The server's, with the status noted on the way."""
        self.status = int(line[:3])
        # Flask takes its request out of the environ before it returns, so this is the time to look.
        self.route = wsgi_route(self._environ)
        if exc_info is None:
            return self._start_response(line, headers)
        return self._start_response(line, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        """A generator, whose end costs no exception. Where it is dropped before, :meth:`close` says what happened."""
        try:
            for chunk in self.iterator:  # noqa: UP028 (yield from would close the app's own iterable)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            self.end(500)
            raise
        self.end(self.status)

    def end(self, status: int) -> None:
        """Count it, unless that was done."""
        accounting = self._accounting
        if accounting is not None:
            self._accounting = None
            accounting.end(self._started, self._environ.get("REQUEST_METHOD", ""), self.route, status)

    def close(self) -> None:
        """Of the body, by the server, whether it was exhausted or not."""
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            if self._accounting is not None:
                self.end(self._unread())

    def __del__(self) -> None:
        # A server that never calls close() must not leak a request in flight. This is the garbage collector's.
        accounting = self._accounting
        if accounting is not None:
            method = self._environ.get("REQUEST_METHOD", "")
            accounting.abandon(self._started, method, self.route, self._unread())

    def _unread(self) -> int:
        """The status of a request whose body was not read to its end: the client went, unless no body was due."""
        bodiless = self._environ.get("REQUEST_METHOD") == "HEAD" or self.status in (204, 304)
        return self.status if bodiless else CLIENT_CLOSED_REQUEST

    def hang_on_close(self, body: Any) -> Iterable[bytes]:
        """The server's own file wrapper, which it recognises and sends without reading it (sendfile).

        The object must stay what it is, so the request's end is hung on its ``close()``.
        """
        close = getattr(body, "close", None)

        def closing() -> None:
            try:
                if close is not None:
                    close()
            finally:
                self.end(self.status)

        body.close = closing
        file: Iterable[bytes] = body
        return file


class _SizedRequest(_Request):
    """Of an app that returned a list: servers take a lone chunk's length for Content-Length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.body)
