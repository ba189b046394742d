"""Both ends of the proxy's tests: a scripted app on raw sockets, and raw clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from gpuscale.requests.totals import RequestTotals, read_totals
from gpuscale.settings import Settings
from gpuscale.sidecar.proxy import Proxy, ProxyPlan

Script = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /hello HTTP/1.1\r\nHost: service\r\n\r\n"


def read_until(peer: socket.socket, end: bytes) -> bytes:
    """What comes up to ``end``, byte by byte: nothing of what follows is taken."""
    data = b""
    while not data.endswith(end):
        piece = peer.recv(1)
        if not piece:
            raise ConnectionError(f"closed after {data!r}")
        data += piece
    return data


def read_head(peer: socket.socket) -> bytes:
    return read_until(peer, b"\r\n\r\n")


def read_rest(peer: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionError):
        while piece := peer.recv(65536):
            data += piece
    return data


def read_exactly(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = peer.recv(min(1 << 20, size - len(data)))
        if not piece:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)


class App:
    """Accepts connections and runs ``script`` on each, on a thread of its own."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                peer.settimeout(15)
                self.connections += 1
                self._open.append(peer)
                threading.Thread(target=self._run, args=(peer,), daemon=True).start()

    def _run(self, peer: socket.socket) -> None:
        with suppress(OSError), peer:
            self._script(peer)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else the thread in accept() keeps it open
        self._listener.close()
        for peer in self._open:
            peer.close()


class Proxied(SimpleNamespace):
    app: App
    proxy: Proxy

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        client.settimeout(15)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.proxy.port))
        return client

    def totals(self) -> RequestTotals:
        return read_totals(self.proxy.accounting.slab)

    def counted(self) -> dict[tuple[str, str, str], float]:
        """Requests that were counted, once none is in flight any more."""
        until(lambda: self.proxy.active == 0)
        totals = self.totals()
        assert totals.in_flight == 0
        return {labels: count for labels, count in totals.requests.items() if count}


@contextmanager
def proxied(script: Script, *, routes: tuple[str, ...] = ("/hello",)) -> Iterator[Proxied]:
    app = App(script)
    proxy = Proxy(ProxyPlan(0, "127.0.0.1", app.port), Settings(), routes)
    proxy.start()
    try:
        yield Proxied(app=app, proxy=proxy)
    finally:
        proxy.close()
        app.close()
        assert not proxy.alive


def answers(*wires: bytes) -> Script:
    """One answer for each request without a body, in turn; the last one goes on."""

    def script(peer: socket.socket) -> None:
        for number in range(10**6):
            read_head(peer)
            peer.sendall(wires[min(number, len(wires) - 1)])

    return script
