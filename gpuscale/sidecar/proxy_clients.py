"""All clients of the proxy: who they are, and who lets it wait for a request too long."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from gpuscale.sidecar.proxy_client import ClientSide
from gpuscale.sidecar.proxy_connection import ClientConnection

if TYPE_CHECKING:
    from gpuscale.sidecar.proxy import Proxy

HEAD_SECONDS = 60.0
"""From the connection, or a head's first byte, to the whole head."""
SWEEP_SECONDS = 5.0


class Clients:
    """Those who are connected."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self.proxy, self.loop = proxy, loop
        self.all: set[ClientConnection] = set()
        loop.call_later(SWEEP_SECONDS, self._sweep)

    def accept(self) -> ClientSide:
        """A protocol for a new connection."""
        return ClientSide(self)

    def close(self) -> None:
        """Part with all of them."""
        for client in list(self.all):
            client.abort()

    def _sweep(self) -> None:
        late = monotonic() - HEAD_SECONDS
        for client in list(self.all):
            if client.waiting_since is not None and client.waiting_since < late:
                client.too_late()
        self.loop.call_later(SWEEP_SECONDS, self._sweep)
