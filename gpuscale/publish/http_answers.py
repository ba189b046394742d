"""From a request to the bytes of its answer: who may ask, which handler answers, what is shared."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from gpuscale.publish.http_credentials import Guard
from gpuscale.publish.http_message import (
    PLAIN,
    RefusedError,
    Request,
    Response,
    accepts_gzip,
    index,
    to_wire,
)

log = logging.getLogger("gpuscale.endpoint")

Handler = Callable[[Mapping[str, str]], Response]

OPEN_PATHS = ("/healthz", "/readyz")
"""Asked for without the token too: a kubelet's probe cannot read a Secret, and they tell nothing else."""
METHODS = ("GET", "HEAD")
COMPLAINT_SECONDS = 10.0
"""A handler that fails at each scrape is logged this often."""


class Answers:
    """Answers requests with the handlers of their paths.

    A rendering is shared by the requests that one round of the server found waiting (same path, ``Accept``
    and encoding): 200 scrapers at once cost a few renderings, and yet nobody who asks after having seen an
    answer gets an older one, since :meth:`forget` ends each round.
    """

    def __init__(self, handlers: Mapping[str, Handler], guard: Guard) -> None:
        self._handlers = {path.rstrip("/") or "/": handler for path, handler in handlers.items()}
        self._guard = guard
        listed = tuple(handlers)
        self._handlers.setdefault("/", lambda headers: index(listed))
        self._shared: dict[tuple[object, ...], bytes] = {}
        self._complained = float("-inf")

    def forget(self) -> None:
        """End the round: the next request is rendered anew."""
        self._shared.clear()

    def answer(self, request: Request) -> bytes:
        """The bytes to send; the connection is kept if ``request.keep_alive``."""
        if request.path not in OPEN_PATHS and not self._guard.allows(request.headers):
            challenge = ("WWW-Authenticate", 'Bearer realm="gpuscale"')
            return self._error(request, 401, "a bearer token is wanted: Authorization: Bearer TOKEN", challenge)
        handler = self._handlers.get(request.path)
        if handler is None:
            return self._error(request, 404, f"not here; there are: {', '.join(sorted(self._handlers))}")
        if request.method not in METHODS:
            return self._error(request, 405, "only GET and HEAD", ("Allow", ", ".join(METHODS)))
        gzip = accepts_gzip(request.headers)
        key = (request.path, request.headers.get("accept"), request.method, gzip, request.keep_alive)
        wire = self._shared.get(key)
        if wire is None:
            wire = self._shared[key] = to_wire(
                self._call(handler, request),
                head_only=request.method == "HEAD",
                keep_alive=request.keep_alive,
                gzip=gzip,
            )
        return wire

    def refuse(self, error: RefusedError) -> bytes:
        """The answer to what is no request; the connection closes after it."""
        response = Response(error.status, PLAIN, f"{error}\n".encode())
        return to_wire(response, head_only=False, keep_alive=False, gzip=False)

    def _error(self, request: Request, status: int, message: str, *extra: tuple[str, str]) -> bytes:
        return to_wire(
            Response(status, PLAIN, f"{message}\n".encode()),
            head_only=request.method == "HEAD",
            keep_alive=request.keep_alive,
            gzip=False,
            extra=extra,
        )

    def _call(self, handler: Handler, request: Request) -> Response:
        try:
            return handler(request.headers)
        except Exception:
            now = time.monotonic()
            if now - self._complained >= COMPLAINT_SECONDS:
                self._complained = now
                log.exception("the answer to %s failed", request.path)
            return Response(500, PLAIN, b"the answer failed; the log says why\n")
