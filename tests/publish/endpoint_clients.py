"""Clients of the endpoint's tests: raw sockets, so that nothing is more polite than the test wants."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gpuscale.publish.endpoint import MetricsServer, Response

PAGE = b"".join(b'series_%d{label="value"} 1.0\n' % number for number in range(400))
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def page(_: Mapping[str, str]) -> Response:
    return Response(200, "text/plain; version=0.0.4; charset=utf-8", PAGE)


def healthy(_: Mapping[str, str]) -> Response:
    return Response(200, "text/plain", b"ok\n")


@contextmanager
def serving(**options: Any) -> Iterator[MetricsServer]:
    options.setdefault("handlers", {"/metrics": page, "/healthz": healthy, "/readyz": healthy})
    server = MetricsServer(address="127.0.0.1", port=0, **options)
    server.start()
    try:
        yield server
    finally:
        server.close()


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(10)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    return client


def read_answer(client: socket.socket, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of the next answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        assert piece, f"closed within the head: {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    length = 0 if head_only else int(headers["content-length"])
    while len(body) < length:
        piece = client.recv(65536)
        assert piece, "closed within the body"
        body += piece
    assert len(body) == length, "more than one answer came"
    return int(first.split(" ")[1]), headers, body


def ask(port: int, request: bytes, **options: Any) -> tuple[int, dict[str, str], bytes]:
    with connect(port) as client:
        client.sendall(request)
        return read_answer(client, **options)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed its side, after whatever it sent before."""
    client.settimeout(10)
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True
