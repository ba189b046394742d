"""One request and its answer, from the proxy's point of view."""

from __future__ import annotations

from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

import h11

from gpuscale.sidecar.proxy_headers import for_client

if TYPE_CHECKING:
    from gpuscale.sidecar.proxy import Proxy

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


class Exchange:
    """One request and its answer. It is counted at its end, exactly once."""

    __slots__ = ("_ended", "_labels", "_proxy", "_started", "answered", "complete", "has_body", "request")

    def __init__(self, proxy: Proxy, request: h11.Request, headers: list[tuple[bytes, bytes]]) -> None:
        path = request.target.partition(b"?")[0].decode("latin-1")
        named = dict(request.headers)
        self._proxy, self.request = proxy, h11.Request(method=request.method, target=request.target, headers=headers)
        websocket = named.get(b"upgrade", b"").lower() == b"websocket"
        method = "WEBSOCKET" if websocket else request.method.decode("ascii")
        self._labels = (method, proxy.route(path)) if proxy.is_counted(path, named) else None
        self._started = proxy.accounting.begin() if self._labels else 0.0
        self._ended = False
        self.answered = False
        """Whether a byte of the app's answer has come."""
        self.has_body = False
        self.complete = False
        """Whether all of the request was passed on."""
        proxy.active += 1

    def end(self, status: int) -> None:
        """Count it; harmless when it has been."""
        if self._ended:
            return
        self._ended = True
        self._proxy.active -= 1
        self._proxy.last_active = monotonic()
        if self._labels:
            self._proxy.accounting.end(self._started, *self._labels, status)


def answer_for_client(
    answer: h11.InformationalResponse | h11.Response, *, closes: bool
) -> h11.InformationalResponse | h11.Response:
    """The app's answer with the headers that the client is to see."""
    status = answer.status_code
    final = isinstance(answer, h11.Response)
    headers = for_client(answer.headers.raw_items(), switches=status == 101, closes=closes and final)
    return type(answer)(status_code=status, headers=headers, reason=answer.reason)


def refusal(status: int, message: str, *, head_only: bool) -> list[h11.Event]:
    """An answer of our own, after which the connection is closed."""
    body = f"{message}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    answer = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
    return [answer, *([] if head_only else [h11.Data(data=body)]), h11.EndOfMessage()]
