"""A client's connection: what belongs to it, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, cast

import h11

from gpuscale.sidecar.proxy_exchange import Exchange, refusal
from gpuscale.sidecar.proxy_sides import MAX_HEAD, AppSide, Side

if TYPE_CHECKING:
    from gpuscale.sidecar.proxy_clients import Clients

LINGER_SECONDS = 2.0


class ClientConnection(Side):
    """With its present request and its connection to the app. What is forwarded is the subclass's matter."""

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        self._clients, self._proxy = clients, clients.proxy
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._app: AppSide | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._exchange: Exchange | None = None
        self._lingers = False
        self.tunnelled = False
        self._half_closed: set[Side] = set()
        self._status = 0
        """Of the answer that is being passed on."""
        self.waiting_since: float | None = monotonic()
        self._peer = b"unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._clients.all.add(self)
        peer = transport.get_extra_info("peername")
        if peer:
            self._peer = str(peer[0]).removeprefix("::ffff:").encode("ascii", "replace")
        kernel: socket.socket = transport.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def too_late(self) -> None:
        """The head was not whole in time."""
        self.waiting_since = None
        self._refuse(408, "the request's head was not complete in time")

    def _refuse(self, status: int, message: str) -> None:
        """Answer ourselves and close."""
        head_only = self._exchange is not None and self._exchange.request.method == b"HEAD"
        self._end(status)
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self.transport.is_closing():
            self.abort()
            return
        events = refusal(status, message, head_only=head_only)
        self.transport.write(b"".join(self.http.send(event) or b"" for event in events))
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a moment: a reset could overtake the answer's last bytes."""
        if self._lingers:
            return
        self._lingers = True
        self.waiting_since = None
        self._drop_app()
        if self.transport.is_closing():
            return
        self.end_writing()
        self._holds.clear()
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        self._clients.loop.call_later(LINGER_SECONDS, self.transport.close)

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _end(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(status)

    def _drop_app(self, *, abort: bool = False) -> None:
        app, self._app = self._app, None
        if app is not None:
            if abort:
                app.transport.abort()
            else:
                app.transport.close()
