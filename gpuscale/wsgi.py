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
Finish = Callable[..., None]
"""Of ``(outcome, dropped)``: EXHAUSTED or a status; whether the garbage collector says so."""

COUNTED = "gpuscale.counted"
"""In the environ of a request that a middleware counts already: mounting two is harmless."""
CLIENT_CLOSED_REQUEST = 499
EXHAUSTED = 0
"""Outcome of a request whose body was read to its end: its status is the app's."""


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
        self._begin = self.publication.accounting.begin
        self._end = self.publication.accounting.end
        self._abandon = self.publication.accounting.abandon
        self._excluded = frozenset(self.publication.settings.excluded_paths)
        self.publication.start_in_workers()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Count a request. Its accounting is closures over locals: an object costs a microsecond more."""
        path = environ.get("PATH_INFO", "")
        if path in self._excluded or COUNTED in environ:
            if self._on_app and path in METRICS_PATHS:
                self.publication.start()
                return self.publication.pages.respond_wsgi(environ, start_response)
            return self.app(environ, start_response)
        if not self.publication.running:
            self.publication.start()
        environ[COUNTED] = True
        status, route = 500, UNMATCHED_ROUTE
        end = self._end

        def counting_start_response(line: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
            nonlocal status, route
            status = int(line[:3])
            # Flask takes its request out of the environ before it returns, so this is the time to look.
            route = wsgi_route(environ)
            return start_response(line, headers) if exc_info is None else start_response(line, headers, exc_info)

        def finish(outcome: int, dropped: bool = False) -> None:
            method = environ.get("REQUEST_METHOD", "")
            if outcome == EXHAUSTED:
                end(started, method, route, status)
                return
            if outcome == CLIENT_CLOSED_REQUEST and (method == "HEAD" or status in (204, 304)):
                outcome = status  # no body was due that could have been read to its end
            (self._abandon if dropped else end)(started, method, route, outcome)

        started = self._begin()
        try:
            body = self.app(environ, counting_start_response)
            wrapper = environ.get("wsgi.file_wrapper")
            if wrapper is not None and isinstance(wrapper, type) and isinstance(body, wrapper):
                return _hang_on_close(body, finish)
            followed = _SizedBody if hasattr(body, "__len__") else _Body
            return followed(body, iter(body), finish)
        except BaseException:  # TypeError, where the app returned what cannot be iterated
            finish(500)
            raise


def _hang_on_close(body: Any, finish: Finish) -> Iterable[bytes]:
    """The server's own file wrapper, which it recognises and sends without reading it (sendfile).

    The object must stay what it is, so the request's end is hung on its ``close()``.
    """
    close = getattr(body, "close", None)
    ended = False

    def closing() -> None:
        nonlocal ended
        try:
            if close is not None:
                close()
        finally:
            if not ended:
                ended = True
                finish(EXHAUSTED)

    body.close = closing
    file: Iterable[bytes] = body
    return file


class _Body:
    """The app's iterable, which ends its request once: when it is exhausted, fails, or is closed or dropped."""

    __slots__ = ("_body", "_finish", "_iterator")

    def __init__(self, body: Iterable[bytes], iterator: Iterator[bytes], finish: Finish) -> None:
        self._body = body
        self._iterator = iterator
        self._finish: Finish | None = finish

    def __iter__(self) -> Iterator[bytes]:
        """A generator, whose end costs no exception. Where it is dropped before, :meth:`close` says what happened."""
        try:
            for chunk in self._iterator:  # noqa: UP028 (yield from would close the app's own iterable)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            self._end(500)
            raise
        self._end(EXHAUSTED)

    def _end(self, outcome: int) -> None:
        finish = self._finish
        if finish is not None:
            self._finish = None
            finish(outcome)

    def close(self) -> None:
        """Of the body, by the server, whether it was exhausted or not."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            if self._finish is not None:
                self._end(CLIENT_CLOSED_REQUEST)

    def __del__(self) -> None:
        # A server that never calls close() must not leak a request in flight. This is the garbage collector's.
        if self._finish is not None:
            self._finish(CLIENT_CLOSED_REQUEST, dropped=True)


class _SizedBody(_Body):
    """Of an app that returned a list: servers take a lone chunk's length for Content-Length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
