"""The proxy in front of an app that knows nothing of gpuscale: it forwards HTTP/1.1 and counts the requests.

The HTTP is h11's, on asyncio's protocols. Of the well-kept ones aiohttp parses in C, but takes 15 MiB where h11
with asyncio takes 3, re-frames bodies and owns WebSockets, which would have to be ended and begun anew; httptools
cannot be told that an answer belongs to a HEAD request. h11 checks the states of both sides, keeps the spelling of
headers, and hands the bytes over after a switch of protocol. It is Python, which is most of what a request costs
(benchmarks/bench_sidecar.py). A client's connection has one connection to the app of its own, so
that a disconnect, a slow reader or an idle timeout on one side is one on the other.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from gpuscale.catalogue import UNMATCHED_ROUTE
from gpuscale.errors import ConfigurationError, GpuscaleError, MissingExtraError
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.settings import Settings

log = logging.getLogger("gpuscale.proxy")

QUIET_SECONDS = 1.0
"""While draining: how long without any request until the proxy counts as drained."""
BACKLOG = 2048
_PLAN = re.compile(r"(?P<listen>\d+):(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+):)?(?P<port>\d+)\Z")


@dataclass(frozen=True)
class ProxyPlan:
    """Where to listen and where the app is."""

    listen: int
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ProxyPlan:
        """From ``8000:127.0.0.1:80``, or ``8000:80`` for the app on 127.0.0.1. Raises ConfigurationError."""
        found = _PLAN.match(text)
        if found is None or not (int(found["listen"]) < 65536 and 0 < int(found["port"]) < 65536):
            raise ConfigurationError(
                f"--proxy must be LISTEN:HOST:PORT such as 8000:127.0.0.1:80 (an IPv6 host in brackets), not {text!r}"
            )
        return cls(int(found["listen"]), (found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))


class Routes:
    """The label ``route``: the first of the given paths that fits (``/v1/*`` fits all below), else unmatched."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        for path in paths:
            if not path.startswith("/") or "*" in path[:-1]:
                raise ConfigurationError(
                    f"--route must be a path such as /predict or a prefix such as /v1/*, not {path!r}"
                )
        self._exact = {path for path in paths if not path.endswith("*")}
        self._prefixes = [path for path in paths if path.endswith("*")]

    def label(self, path: str) -> str:
        """Of a request for this path, which is without query."""
        if path in self._exact:
            return path
        return next((each for each in self._prefixes if path.startswith(each[:-1])), UNMATCHED_ROUTE)


class Proxy:
    """Forwards on a thread of its own. Raises MissingExtraError when h11 is not installed."""

    def __init__(self, plan: ProxyPlan, settings: Settings, routes: tuple[str, ...] = ()) -> None:
        try:
            import h11  # noqa: F401
        except ImportError:
            raise MissingExtraError("h11", "proxy") from None
        self.plan = plan
        self.accounting = RequestAccounting(buckets=settings.buckets)
        self._excluded = frozenset(settings.excluded_paths)
        self._routes = Routes(routes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._port = plan.listen
        self.active = 0
        """Requests being forwarded, probes included."""
        self.last_active = monotonic()
        self.draining = False

    @property
    def port(self) -> int:
        """That is listened on; the real one where 0 was asked."""
        return self._port

    @property
    def alive(self) -> bool:
        """Whether the thread forwards."""
        return self._thread is not None and self._thread.is_alive()

    def is_counted(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Probes are not: they would hold up an idle service."""
        return path not in self._excluded and not headers.get(b"user-agent", b"").startswith(b"kube-probe/")

    def route(self, path: str) -> str:
        """The label."""
        return self._routes.label(path)

    def start(self) -> None:
        """Open the port and forward. Raises GpuscaleError when it is taken."""
        try:
            listener = _listen(self.plan.listen)
        except OSError as error:
            raise GpuscaleError(
                f"the proxy's port {self.plan.listen} cannot be opened: {error}; choose another with --proxy"
            ) from None
        self._port = int(listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, listener, ready), name="gpuscale-proxy", daemon=True
        )
        self._thread.start()
        ready.wait(5.0)
        log.info("forwarding port %d to %s port %d", self._port, self.plan.host, self.plan.port)

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, ready: threading.Event) -> None:
        from gpuscale.sidecar.proxy_clients import Clients

        asyncio.set_event_loop(loop)
        clients = Clients(self, loop)
        server = loop.run_until_complete(
            loop.create_server(clients.accept, sock=listener, backlog=BACKLOG, start_serving=True)
        )
        ready.set()
        try:
            loop.run_forever()
        finally:
            server.close()
            clients.close()
            loop.run_until_complete(asyncio.sleep(0))  # lets the transports' closing callbacks run
            loop.close()

    def drain(self, seconds: float) -> None:
        """Answer with ``Connection: close`` and wait until no request came for QUIET_SECONDS, or ``seconds``.

        The port stays open meanwhile: until all nodes know that the pod is ending, requests go on to come, and
        none of them is to be refused.
        """
        self.draining = True
        self.last_active = monotonic()
        end = monotonic() + seconds
        pause = threading.Event()
        while monotonic() < end and self.alive:
            if not self.active and monotonic() - self.last_active >= QUIET_SECONDS:
                return
            pause.wait(0.02)
        if self.active:
            log.warning("%d requests had not ended after %.0f s", self.active, seconds)

    def close(self) -> None:
        """Close every connection and the port."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        try:
            loop.call_soon_threadsafe(loop.stop)
        except RuntimeError:
            return  # its thread has ended
        thread.join(1.0)


def _listen(port: int) -> socket.socket:
    """All addresses: both families where the kernel has IPv6."""
    try:
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _TAKEN:
            raise
        listener = socket.create_server(("0.0.0.0", port), backlog=BACKLOG)
    listener.setblocking(False)
    return listener


_TAKEN = (13, 98)
"""EACCES and EADDRINUSE: IPv4 would fail the same way."""
