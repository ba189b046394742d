"""The app's end of a forwarded connection, and what both ends have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import h11

if TYPE_CHECKING:
    from gpuscale.sidecar.proxy_client import ClientSide

MAX_HEAD = 65536
"""Bytes of a request's or an answer's head."""


class Side(asyncio.Protocol):
    """What both ends have in common: a transport, and holding the other end back while this one is full."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._holds: set[str] = set()

    def hold(self, why: str) -> None:
        """Stop reading until :meth:`release` was called for every reason."""
        if not self._holds:
            self.transport.pause_reading()
        self._holds.add(why)

    def end_writing(self) -> None:
        """Close this direction once everything is written."""
        try:
            if self.transport.can_write_eof():
                self.transport.write_eof()
        except OSError:  # the peer has gone altogether
            self.transport.abort()

    def release(self, why: str) -> None:
        """Read on."""
        if why in self._holds:
            self._holds.discard(why)
            if not self._holds and not self.transport.is_closing():
                self.transport.resume_reading()


class AppSide(Side):
    """The connection to the app that belongs to one client's."""

    def __init__(self, client: ClientSide) -> None:
        super().__init__()
        self.client = client
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.reused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.client.tunnelled:
            self.client.transport.write(data)
            return
        self.http.receive_data(data)
        self.client.pump_answer(self)

    def eof_received(self) -> bool:
        if self.client.tunnelled:
            return self.client.half_closed(self)
        if self.http.their_state is h11.SEND_BODY:
            self.http.receive_data(b"")  # the end of an answer without a length, or one that breaks off
            self.client.pump_answer(self)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.client.app_lost(self)

    def pause_writing(self) -> None:
        self.client.hold("app")

    def resume_writing(self) -> None:
        self.client.release("app")
