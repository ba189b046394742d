"""The ASGI middleware: counts each HTTP request and WebSocket of an app once, until its last body byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gpuscale.publish.publication import Publication
from gpuscale.requests.routes import AsgiRoutes
from gpuscale.settings import METRICS_PATHS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COUNTED = "gpuscale.counted"
"""In the scope of a request that a middleware counts already: mounting two is harmless."""
CLIENT_CLOSED_REQUEST = 499
LAST_MESSAGES = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))
"""Messages that end an answer unless they say ``more_body``."""


class MetricsMiddleware:
    """``app.add_middleware(gpuscale.asgi.MetricsMiddleware)`` or ``MetricsMiddleware(app)``.

    Options are those of :class:`gpuscale.settings.Settings` and ``registry``; a wrong one raises
    ConfigurationError here. The metrics endpoint starts with the app (lifespan), at the latest with its first
    request.
    """

    def __init__(self, app: App, *, publication: Publication | None = None, **options: Any) -> None:
        self.app = app
        self.publication = publication or Publication.shared(**options)
        self._on_app = self.publication.settings.on_app
        self._excluded = frozenset(self.publication.settings.excluded_paths)
        self._route = AsgiRoutes(app)
        self._follows_loop = False
        self._begin = self.publication.accounting.begin
        self._end = self.publication.accounting.end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count an HTTP request; whatever else comes goes its own way.

        The accounting of a request is closures over locals: an object with attributes costs a microsecond more.
        """
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        path = scope["path"]
        if scope.get("root_path"):
            path = _below_root(scope)
        if path in self._excluded or COUNTED in scope:
            await self._uncounted(scope, path, receive, send)
            return
        if not (self._follows_loop and self.publication.running):
            self.startup()
        scope[COUNTED] = True
        root = scope.get("app")
        status = 500
        ended = disconnected = False
        # uvicorn keeps on its cycle whether the client has gone, even if the app never asks: then there is
        # no need to listen to what it receives.
        cycle = getattr(receive, "__self__", None)
        started = self._begin()

        async def send_body(message: Message, last: bool) -> None:
            nonlocal disconnected, ended
            try:
                await send(message)
            except OSError:
                disconnected = True
                raise
            if last and not ended:
                ended = True
                self._finish(scope, root, path, started, status, disconnected, cycle)

        def counting_send(message: Message) -> Awaitable[None]:
            nonlocal status
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
            elif kind in LAST_MESSAGES:
                return send_body(message, not message.get("more_body", False))
            return send(message)  # without a coroutine of ours in between

        if not hasattr(cycle, "disconnected"):
            servers_receive = receive

            async def receive() -> Message:
                nonlocal disconnected
                message = await servers_receive()
                if message["type"] == "http.disconnect":
                    disconnected = True
                return message

        try:
            await self.app(scope, receive, counting_send)
        except GeneratorExit:  # the event loop was dropped with its tasks: this is the garbage collector
            if not ended:
                route = self._route(scope, root, path)
                self.publication.accounting.abandon(started, scope["method"], route, CLIENT_CLOSED_REQUEST)
            raise
        except BaseException as error:
            if not ended:  # after the last body byte it is a background task's affair, and no request's
                gone = isinstance(error, asyncio.CancelledError) or type(error).__name__ == "ClientDisconnect"
                self._finish(scope, root, path, started, 500, gone or disconnected, cycle)
            raise
        if not ended:  # the app returned without a last body byte; the server breaks the answer off
            self._finish(scope, root, path, started, 500, disconnected, cycle)

    def _finish(
        self, scope: Scope, root: Any, path: str, started: float, status: int, gone: bool, cycle: object
    ) -> None:
        if gone or getattr(cycle, "disconnected", False):
            status = CLIENT_CLOSED_REQUEST
        self._end(started, scope["method"], self._route(scope, root, path), status)

    def startup(self) -> None:
        """The app starts, or has its first request where nobody said so. Call it on the event loop."""
        self.publication.start()
        self.publication.loop_lag.start()
        self._follows_loop = True

    def shutdown(self) -> None:
        """The event loop ends."""
        self.publication.loop_lag.stop()
        self._follows_loop = False

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket" and COUNTED not in scope:
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (self._follows_loop and self.publication.running):
            self.startup()
        connection = _WebSocket(self, scope, receive, send)
        try:
            await self.app(scope, connection.receive, connection.send)
        except GeneratorExit:
            connection.drop()
            raise
        except BaseException as error:
            connection.fail(error)
            raise
        connection.abandon()

    async def _uncounted(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        if self._on_app and path in METRICS_PATHS:
            self.publication.start()
            await self.publication.pages.respond_asgi(scope, send)
        else:
            await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Before the app's own start-up, which may load a model for minutes; also for an app that knows no lifespan.
        self.startup()
        try:
            await self.app(scope, receive, send)
        finally:
            self.shutdown()


class _WebSocket:
    """One connection's accounting: in flight for its lifetime, status 101 once accepted."""

    __slots__ = ("_middleware", "_path", "_receive", "_root", "_scope", "_send", "_started", "_status", "ended")

    def __init__(self, middleware: MetricsMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._middleware = middleware
        self._scope = scope
        self._root = scope.get("app")
        self._path = _below_root(scope)
        self._receive = receive
        self._send = send
        self._status = 0
        self.ended = False
        scope[COUNTED] = True
        self._started = middleware._begin()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            # Refused or gone before it was accepted: the client went away.
            self._end(self._status or CLIENT_CLOSED_REQUEST)
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.http.response.start":
            self._status = message["status"]
        await self._send(message)
        if kind == "websocket.close":
            self._end(self._status or 403)
        elif kind == "websocket.http.response.body" and not message.get("more_body", False):
            self._end(self._status)

    def fail(self, error: BaseException) -> None:
        gone = isinstance(error, asyncio.CancelledError)
        self._end((self._status or CLIENT_CLOSED_REQUEST) if gone else 500)

    def abandon(self) -> None:
        self._end(self._status or 500)

    def drop(self) -> None:
        """The garbage collector ends it: see :meth:`RequestAccounting.abandon`."""
        self._end(self._status or CLIENT_CLOSED_REQUEST, self._middleware.publication.accounting.abandon)

    def _end(self, status: int, end: Callable[[float, str, str, int], None] | None = None) -> None:
        if not self.ended:
            self.ended = True
            route = self._middleware._route(self._scope, self._root, self._path)
            (end or self._middleware._end)(self._started, "WEBSOCKET", route, status)


def _below_root(scope: Scope) -> str:
    """The path as the app's routes see it: a server with a root path (``uvicorn --root-path``) puts it in front."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path
