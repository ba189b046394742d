"""The ASGI middleware: counts each HTTP request and WebSocket of an app once, until its last body byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gpuscale.publish.publication import Publication
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.requests.routes import AsgiRoutes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COUNTED = "gpuscale.counted"
"""In the scope of a request that a middleware counts already: mounting two is harmless."""
CLIENT_CLOSED_REQUEST = 499


class MetricsMiddleware:
    """``app.add_middleware(gpuscale.asgi.MetricsMiddleware)`` or ``MetricsMiddleware(app)``.

    Options are those of :class:`gpuscale.settings.Settings` and ``registry``; a wrong one raises
    ConfigurationError here. The metrics endpoint starts with the app (lifespan), at the latest with its first
    request.
    """

    def __init__(self, app: App, *, publication: Publication | None = None, **options: Any) -> None:
        self.app = app
        self.publication = publication or Publication.shared(**options)
        self._excluded = frozenset(self.publication.settings.excluded_paths)
        self._on_app = self.publication.settings.on_app
        self._route = AsgiRoutes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            if scope["path"] in self._excluded or COUNTED in scope:
                await self._uncounted(scope, receive, send)
                return
            request: _HttpRequest | _WebSocket = _HttpRequest(self, scope, receive, send)
        elif kind == "websocket" and COUNTED not in scope:
            request = _WebSocket(self, scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        else:
            await self.app(scope, receive, send)
            return
        try:
            # uvicorn keeps on its cycle whether the client has gone, even if the app never asks: then there is
            # no need to listen to what it receives.
            quiet = kind == "http" and hasattr(_cycle(receive), "disconnected")
            await self.app(scope, receive if quiet else request.receive, request.send)
        except BaseException as error:
            request.fail(error)
            raise
        if not request.ended:
            request.abandon()

    async def _uncounted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._on_app and scope["path"] in ("/metrics", "/metrics/"):
            self.publication.start()
            await self.publication.respond_asgi(scope, send)
        else:
            await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        publication = self.publication

        async def receive_and_start() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # Before the app's own start-up, which may load a model for minutes.
                publication.start()
                publication.loop_lag.start()
            return message

        try:
            await self.app(scope, receive_and_start, send)
        finally:
            publication.loop_lag.stop()


class _HttpRequest:
    """One request's accounting, between the server's ``send`` and the app."""

    __slots__ = (
        "_accounting", "_disconnected", "_middleware", "_receive", "_root", "_scope", "_send", "_started",
        "_status", "ended",
    )  # fmt: skip

    def __init__(self, middleware: MetricsMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        publication = middleware.publication
        if not publication.running:
            publication.start()
            publication.loop_lag.start()
        self._middleware = middleware
        self._scope = scope
        self._root = scope.get("app")
        self._send = send
        self._receive = receive
        self._status = 500
        self._disconnected = False
        self.ended = False
        scope[COUNTED] = True
        self._accounting: RequestAccounting = publication.accounting
        self._started = publication.accounting.begin()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._disconnected = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
        elif kind == "http.response.body":
            # Without another coroutine for what is not the end.
            if message.get("more_body", False):
                return self._send_more(message)
            return self._send_last(message)
        elif kind == "http.response.pathsend" or (
            kind == "http.response.zerocopysend" and not message.get("more_body", False)
        ):
            return self._send_last(message)
        return self._send(message)

    async def _send_more(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self._disconnected = True
            raise

    async def _send_last(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self._disconnected = True
            raise
        if not self.ended:
            self._end(self._status)

    def fail(self, error: BaseException) -> None:
        """The app raised. After the last body byte that is a background task's affair, and no request's."""
        if not self.ended:
            gone = isinstance(error, asyncio.CancelledError) or type(error).__name__ == "ClientDisconnect"
            self._end(CLIENT_CLOSED_REQUEST if gone else 500)

    def abandon(self) -> None:
        """The app returned without a last body byte; the server will break the answer off."""
        self._end(500)

    def _end(self, status: int) -> None:
        self.ended = True
        if self._disconnected or getattr(_cycle(self._receive), "disconnected", False):
            status = CLIENT_CLOSED_REQUEST
        scope = self._scope
        route = self._middleware._route(scope, self._root)
        self._accounting.end(self._started, scope["method"], route, status)


class _WebSocket:
    """One connection's accounting: in flight for its lifetime, status 101 once accepted."""

    __slots__ = ("_accounting", "_middleware", "_receive", "_root", "_scope", "_send", "_started", "_status", "ended")

    def __init__(self, middleware: MetricsMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        publication = middleware.publication
        if not publication.running:
            publication.start()
            publication.loop_lag.start()
        self._middleware = middleware
        self._scope = scope
        self._root = scope.get("app")
        self._receive = receive
        self._send = send
        self._status = 0
        self.ended = False
        scope[COUNTED] = True
        self._accounting = publication.accounting
        self._started = publication.accounting.begin()

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

    def _end(self, status: int) -> None:
        if not self.ended:
            self.ended = True
            route = self._middleware._route(self._scope, self._root)
            self._accounting.end(self._started, "WEBSOCKET", route, status)


def _cycle(receive: Receive) -> object:
    return getattr(receive, "__self__", None)
