"""The metrics endpoint: an HTTP/1.1 server on a thread of its own, which answers while the app is busy.

It is built on non-blocking sockets: a client costs a kilobyte and no thread, and none can hold up another
(:mod:`gpuscale.publish.http_loop` says what bounds it).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Mapping

from gpuscale.errors import ConfigurationError
from gpuscale.publish.http_answers import Answers, Handler
from gpuscale.publish.http_credentials import Everybody, Guard, TlsFiles, TokenFile
from gpuscale.publish.http_loop import RECEIVE_BUFFER, SEND_BUFFER, Loop
from gpuscale.publish.http_message import Response
from gpuscale.settings import endpoint_url

__all__ = ["Handler", "MetricsServer", "Response"]

THREAD_NAME = "gpuscale-endpoint"
BACKLOG = 1024


class MetricsServer:
    """Serves ``handlers`` (path → function of the request's headers) to GET and HEAD.

    Handlers run on the server's thread and are quick (milliseconds). They may depend on the header
    ``accept`` only, since one answer is shared by requests that wait at the same time. One that raises is
    answered with 500 and logged. A path is served with a trailing slash too. ``/`` lists the paths unless it
    is one of them.

    With ``tls_cert`` and ``tls_key`` (PEM) it speaks TLS 1.2 and 1.3; with ``token_file`` it wants that
    bearer token for all but ``/healthz`` and ``/readyz``. All three are read again when they change.

    Raises ConfigurationError for a file that cannot be used.
    """

    def __init__(
        self,
        *,
        address: str,
        port: int,
        handlers: Mapping[str, Handler],
        tls_cert: str | None = None,
        tls_key: str | None = None,
        token_file: str | None = None,
    ) -> None:
        if bool(tls_cert) != bool(tls_key):
            raise ConfigurationError("tls_cert and tls_key go together: give both or none")
        self._address, self._asked_port = address, port
        self._tls = TlsFiles(tls_cert, tls_key) if tls_cert and tls_key else None
        guard: Guard = TokenFile(token_file) if token_file else Everybody()
        self._answers = Answers(handlers, guard)
        self._port = port
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self) -> None:
        """Bind the port and start the thread. Raises OSError when the port is taken."""
        if self._loop is not None:
            return
        listener = _listen(self._address, self._asked_port)
        self._port = int(listener.getsockname()[1])
        self._pid = os.getpid()
        self._loop = Loop(listener, self._answers, self._tls)
        self._thread = threading.Thread(target=self._loop.run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on: the real one once started, where 0 was asked."""
        return self._port

    @property
    def url(self) -> str:
        """Where this machine reaches ``/metrics``."""
        return endpoint_url(self._address, self._port, tls=self._tls is not None)

    @property
    def alive(self) -> bool:
        """Whether the thread serves."""
        return self._thread is not None and self._thread.is_alive()

    def close(self, timeout: float = 2.0) -> None:
        """Close every socket and end the thread; wait at most ``timeout`` seconds for a stuck handler.

        Harmless when it is closed already, and in a forked child, where it is :meth:`close_inherited`.
        """
        loop, thread = self._loop, self._thread
        if loop is None:
            return
        if self._pid != os.getpid():
            self.close_inherited()
            return
        self._loop = self._thread = None
        loop.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            if thread.is_alive():
                loop.abandon()  # the port is free from here on; the thread ends when its handler returns

    def close_inherited(self) -> None:
        """In a forked child: close its copies of the sockets; the parent's server goes on undisturbed."""
        loop, self._loop, self._thread = self._loop, None, None
        if loop is not None:
            loop.abandon()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)  # Python's sockets are not inherited over exec
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        # Accepted sockets have these too. Without them the kernel would grow each to megabytes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
