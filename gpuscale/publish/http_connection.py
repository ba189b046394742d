"""One client's connection to the endpoint: a non-blocking socket with bounded buffers and a deadline."""

from __future__ import annotations

import enum
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

READ_SIZE = 4096
MAX_BUFFERED = 16384
"""Bytes of unanswered requests that are held for one client; the rest waits in the kernel."""


class State(enum.Enum):
    """What the server waits for."""

    HANDSHAKE = enum.auto()
    IDLE = enum.auto()
    """Not a byte of the next request has come."""
    HEAD = enum.auto()
    """Some bytes of a request have come."""
    WRITE = enum.auto()
    LINGER = enum.auto()
    """The last answer is out; what still comes is dropped, since a reset could overtake the answer."""


class Connection:
    """Owns its socket. Nothing here blocks; an OSError of any method means that the client is lost."""

    __slots__ = (
        "_out", "_sent", "answered_at", "buffer", "closes", "deadline", "searched", "socket", "state", "tls",
        "wants_write",
    )  # fmt: skip

    def __init__(self, accepted: socket.socket, deadline: float, context: ssl.SSLContext | None = None) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = accepted
        self.tls: ssl.SSLSocket | None = None
        self.state = State.IDLE
        if context is not None:
            self.tls = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            self.socket = self.tls
            self.state = State.HANDSHAKE
        self.deadline = deadline
        self.answered_at = 0.0
        self.buffer = bytearray()
        self.searched = 0
        """Bytes of the buffer in which no end of a head was found."""
        self.wants_write = False
        """Whether to wait until the socket can be written rather than read."""
        self.closes = False
        """Whether to close after the answer that is being written."""
        self._out = b""
        self._sent = 0

    def handshake(self) -> bool:
        """Go on with the TLS handshake; True once it is complete."""
        import ssl

        assert self.tls is not None
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.wants_write = False
            return False
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return False
        self.wants_write = False
        return True

    def receive(self) -> bool:
        """Take what has come, up to MAX_BUFFERED; False at the end of the client's stream."""
        while len(self.buffer) < MAX_BUFFERED:
            try:
                data = self.socket.recv(READ_SIZE)
            except OSError as error:
                if _would_block(error):
                    return True
                raise
            if not data:
                return False
            self.buffer += data
            if len(data) < READ_SIZE and self.tls is None:
                return True  # spares the call that would say that there is no more
        return True

    def discard(self) -> bool:
        """Drop what has come, one piece of it; False at the end of the client's stream."""
        try:
            return bool(self.socket.recv(READ_SIZE))
        except OSError as error:
            if _would_block(error):
                return True
            raise

    def has_more(self) -> bool:
        """Whether bytes wait that no selector reports: inside the TLS layer."""
        return self.tls is not None and self.tls.pending() > 0 and len(self.buffer) < MAX_BUFFERED

    def answer(self, wire: bytes, *, closes: bool) -> None:
        """Set the bytes to be written; they may be shared with other connections."""
        self._out, self._sent, self.closes = wire, 0, closes
        self.state = State.WRITE

    @property
    def unsent(self) -> int:
        """Bytes of the answer that the kernel has not taken."""
        return len(self._out) - self._sent

    def flush(self) -> bool:
        """Write what the kernel takes; True once the answer is out."""
        while self.unsent:
            try:
                self._sent += self.socket.send(memoryview(self._out)[self._sent :])
            except OSError as error:
                if _would_block(error):
                    self.wants_write = type(error).__name__ != "SSLWantReadError"
                    return False
                raise
        self._out, self._sent, self.wants_write = b"", 0, False
        return True

    def shutdown(self) -> None:
        """Say that nothing more will be written."""
        try:
            if self.tls is not None:
                self.tls.unwrap()  # sends close_notify; the client's own is not waited for
            self.socket.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        """Close the file descriptor, without a word to the client."""
        try:
            self.socket.close()
        except OSError:
            pass


def _would_block(error: OSError) -> bool:
    """Whether to try again later. TLS has errors of its own for that; their names spare importing ssl."""
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )
