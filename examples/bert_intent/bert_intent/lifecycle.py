"""From loading to draining: when the service is ready, and how SIGTERM ends it without a failed request."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from types import FrameType
from typing import Any

logger = logging.getLogger("bert_intent")

LOADING, READY, DRAINING, FAILED = "loading the model", "ready", "shutting down", "the model cannot be loaded"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Lifecycle:
    """The service's state; it goes from LOADING to READY to DRAINING, or to FAILED."""

    def __init__(self) -> None:
        self.state = LOADING
        self.draining = threading.Event()

    def loaded(self) -> None:
        """The model is loaded and warm."""
        if self.state == LOADING:
            self.state = READY

    def fail(self) -> None:
        """The model cannot be loaded."""
        self.state = FAILED

    @property
    def failed(self) -> bool:
        """Whether the model could not be loaded."""
        return self.state == FAILED

    def drain(self) -> None:
        """From now on not ready; requests are still answered."""
        self.draining.set()
        if self.state != FAILED:
            self.state = DRAINING


def drain_before_exit(lifecycle: Lifecycle, seconds: float) -> Callable[[], None]:
    """Put ``seconds`` of draining between SIGTERM and the server's own handling of it.

    A pod gets SIGTERM at the moment it begins to be taken out of its Service's endpoints, and connections still
    come for a while: a server that closes its port at once refuses them. Until the server's handler (whatever is
    installed now: uvicorn's) runs, the port stays open. A second SIGTERM does not wait; SIGINT (Ctrl-C) never
    does. Call it on the event loop; returns what undoes it. Outside the main thread nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    servers_own = signal.getsignal(signal.SIGTERM)

    def hand_over() -> None:
        if callable(servers_own):
            servers_own(signal.SIGTERM, None)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        at_once = lifecycle.draining.is_set() or lifecycle.failed
        lifecycle.drain()
        if at_once:
            hand_over()
        else:
            loop.call_soon_threadsafe(_begin, loop, seconds, hand_over)

    signal.signal(signal.SIGTERM, handle)

    def undo() -> None:
        # Only our own: the server may have put its caller's handler back by now.
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, servers_own)

    return undo


def _begin(loop: asyncio.AbstractEventLoop, seconds: float, hand_over: Callable[[], None]) -> None:
    logger.info("SIGTERM: not ready any more; the port closes in %g s", seconds)
    loop.call_later(seconds, hand_over)


class CloseWhileDraining:
    """ASGI middleware: answers given while draining end their connection, so that clients go elsewhere in time.

    A client that kept its connection would find it closed at the end, perhaps with a request on the way.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], lifecycle: Lifecycle) -> None:
        self._app = app
        self._draining = lifecycle.draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._draining.is_set() or scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_close(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_and_close)
