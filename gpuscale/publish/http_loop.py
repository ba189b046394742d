"""The rounds of the endpoint's one thread: who is served when, who is closed when there are too many.

What bounds it: MAX_CONNECTIONS clients, MAX_BUFFERED bytes read ahead of each, MAX_UNSENT bytes of answers
that the kernel has not taken, its own buffers by SEND_BUFFER and RECEIVE_BUFFER, a deadline in every state.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import threading
import time
from collections import OrderedDict

from gpuscale.publish.http_answers import Answers
from gpuscale.publish.http_connection import Connection, State
from gpuscale.publish.http_credentials import TlsFiles
from gpuscale.publish.http_message import MAX_HEAD_BYTES, RefusedError, parse_head, take_head

log = logging.getLogger("gpuscale.endpoint")

MAX_CONNECTIONS = 512
MAX_UNSENT = 8 * 2**20
ACCEPTS_PER_ROUND = 64
HANDSHAKE_SECONDS_PER_ROUND = 0.01
"""Handshakes cost up to a millisecond each: a flood of them leaves room for those who ask."""
SECONDS_PER_ROUND = 0.01
REFRESH_SECONDS = 0.2
SEND_BUFFER = 65536
RECEIVE_BUFFER = 16384

FIRST_BYTE_SECONDS = 10.0
HEAD_SECONDS = 5.0
HANDSHAKE_SECONDS = 5.0
WRITE_SECONDS = 10.0
LINGER_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 120.0
"""Longer than any usual scrape interval, so that Prometheus keeps its connection."""
SWEEP_SECONDS = 0.5
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Loop:
    """Serves a listening socket until :meth:`stop`. All but ``stop`` and ``abandon`` is its thread's."""

    def __init__(self, listener: socket.socket, answers: Answers, tls: TlsFiles | None) -> None:
        self._listener, self._answers, self._tls = listener, answers, tls
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wakened, selectors.EVENT_READ)
        self._by_progress: OrderedDict[Connection, None] = OrderedDict()
        """Least recently accepted or answered first: the one that gives way when there are too many."""
        self._again: set[Connection] = set()
        """Those who may have more to be answered without a word from the selector."""
        self._next_sweep = 0.0
        self._listens_from: float | None = None
        """When accepting goes on after the process ran out of file descriptors."""
        self._stopped = threading.Event()

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self._by_progress)

    def stop(self) -> None:
        """Let :meth:`run` end; from any thread."""
        self._stopped.set()
        try:
            self._waker.send(b"\0")
        except OSError:
            pass

    def run(self) -> None:
        """Serve until stopped, then close every socket. No client and no handler can end it otherwise."""
        try:
            while not self._stopped.is_set():
                try:
                    self._round()
                except Exception:
                    if self._stopped.is_set():
                        break  # the sockets were closed while a handler was stuck
                    log.exception("the metrics endpoint failed and goes on")
                    time.sleep(0.05)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file descriptors, the selector's too, without a word to clients or to the selector.

        For a forked child as well: its copy of an epoll descriptor is the parent's epoll, so that
        unregistering there would blind the parent.
        """
        for connection in list(self._by_progress):
            connection.close()
        for each in (self._listener, self._waker, self._wakened, self._selector):
            each.close()

    def _round(self) -> None:
        events = self._selector.select(self._timeout())
        now = time.monotonic()
        self._answers.forget()
        again, self._again = self._again, set()
        ready = {key.data for key, _ in events if isinstance(key.data, Connection)} | again
        if any(key.fileobj is self._listener for key, _ in events):
            ready |= self._accept(now)
        handshakes_end, end = now + HANDSHAKE_SECONDS_PER_ROUND, now + SECONDS_PER_ROUND
        # Whoever was not answered for longest comes first: a scrape every second passes those who ask without
        # a pause. The others' turn comes after another look at who asks.
        for connection in sorted(ready, key=_answered_at):
            instant = time.monotonic()
            if instant >= (handshakes_end if connection.state is State.HANDSHAKE else end):
                if connection in again:
                    self._again.add(connection)
            else:
                self._serve(connection, now)
        if now >= self._next_sweep:
            self._sweep(now)

    def _timeout(self) -> float | None:
        if self._again:
            return 0.0
        if not self._by_progress and self._listens_from is None:
            return None
        return max(0.0, self._next_sweep - time.monotonic())

    # --- who comes and who goes

    def _accept(self, now: float) -> set[Connection]:
        """The new ones. They are served at once: their requests have mostly come while they waited."""
        new: set[Connection] = set()
        for turn in range(ACCEPTS_PER_ROUND):
            try:
                accepted, _peer = self._listener.accept()
            except BlockingIOError:
                return new
            except OSError as error:
                # The kernel says "no room" even if nobody waits: only the first time it is sure that one does.
                if error.errno not in NO_ROOM or turn:
                    return new
                if not self._make_room(error, now):
                    return new
                continue
            if len(self._by_progress) >= MAX_CONNECTIONS:
                self._drop(next(iter(self._by_progress)))
            connection = self._welcome(accepted, now)
            if connection is not None:
                new.add(connection)
        return new

    def _make_room(self, error: OSError, now: float) -> bool:
        """The process has no file descriptor left: the oldest client gives way."""
        if self._by_progress:
            self._drop(next(iter(self._by_progress)))
            return True
        # Without this pause the selector would report the waiting client over and over.
        self._selector.unregister(self._listener)
        self._listens_from = now + SWEEP_SECONDS
        log.warning("the metrics endpoint accepts no connection for a while: %s", error)
        return False

    def _welcome(self, accepted: socket.socket, now: float) -> Connection | None:
        wait = FIRST_BYTE_SECONDS if self._tls is None else HANDSHAKE_SECONDS
        context = None if self._tls is None else self._tls.context()
        try:
            connection = Connection(accepted, now + wait, context)
        except (OSError, ValueError):
            accepted.close()
            return None
        self._by_progress[connection] = None
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        if connection not in self._by_progress:
            return  # it gave way to another in this round
        del self._by_progress[connection]
        self._selector.unregister(connection.socket)
        connection.close()

    def _sweep(self, now: float) -> None:
        """Close whose time is over; slow readers first, where too much waits for them."""
        self._next_sweep = now + SWEEP_SECONDS
        if self._listens_from is not None and now >= self._listens_from:
            self._listens_from = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for connection in [each for each in self._by_progress if each.deadline <= now]:
            if connection.state is State.HEAD and connection in self._by_progress:
                late = RefusedError(408, f"the request was not complete within {HEAD_SECONDS:.0f} seconds")
                self._guarded(connection, now, late)
            else:
                self._drop(connection)

    def _bound_unsent(self) -> None:
        slow = [each for each in self._by_progress if each.state is State.WRITE]
        unsent = sum(each.unsent for each in slow)
        for each in slow[:-1]:
            if unsent <= MAX_UNSENT:
                return
            unsent -= each.unsent
            self._drop(each)

    # --- one client

    def _serve(self, connection: Connection, now: float) -> None:
        if connection in self._by_progress:  # else it gave way to another in this round
            self._guarded(connection, now, None)

    def _guarded(self, connection: Connection, now: float, refusal: RefusedError | None) -> None:
        """Advance one client; whatever goes wrong ends this client only."""
        try:
            alive = self._advance(connection, now) if refusal is None else self._refuse(connection, now, refusal)
            if alive:
                self._watch(connection)
        except OSError:
            alive = False
        except Exception:
            log.exception("a client's request failed")
            alive = False
        if not alive:
            self._drop(connection)

    def _advance(self, connection: Connection, now: float) -> bool:
        """Do what can be done without waiting; False when the client is done with."""
        if connection.state is State.HANDSHAKE:
            if not connection.handshake():
                return True
            connection.state, connection.deadline = State.IDLE, now + FIRST_BYTE_SECONDS
        if connection.state is State.LINGER:
            return connection.discard()
        if connection.state is State.WRITE:
            return self._write(connection, now)
        open_ended = connection.receive()
        try:
            head = take_head(connection.buffer, connection.searched)
            if head is not None:
                connection.searched = 0
                request = parse_head(head)
                wire = self._answers.answer(request)
                connection.answer(wire, closes=not request.keep_alive)
                connection.deadline = now + WRITE_SECONDS
                return self._write(connection, now)
        except RefusedError as error:
            return self._refuse(connection, now, error)
        connection.searched = min(len(connection.buffer), MAX_HEAD_BYTES)
        if connection.state is State.IDLE and connection.buffer:
            connection.state, connection.deadline = State.HEAD, now + HEAD_SECONDS
        if connection.has_more():
            self._again.add(connection)
        return open_ended

    def _refuse(self, connection: Connection, now: float, error: RefusedError) -> bool:
        connection.buffer.clear()
        connection.answer(self._answers.refuse(error), closes=True)
        connection.deadline = now + WRITE_SECONDS
        return self._write(connection, now)

    def _write(self, connection: Connection, now: float) -> bool:
        if not connection.flush():
            self._bound_unsent()
            return True
        if now - connection.answered_at >= REFRESH_SECONDS:  # who asks without a pause gives way first
            self._by_progress.move_to_end(connection)
        connection.answered_at = now
        if connection.closes:
            connection.shutdown()
            connection.state, connection.deadline = State.LINGER, now + LINGER_SECONDS
            return True
        connection.state, connection.deadline = State.IDLE, now + KEEP_ALIVE_SECONDS
        if connection.buffer or connection.has_more():
            self._again.add(connection)  # its next request waits its turn
        return True

    def _watch(self, connection: Connection) -> None:
        if connection not in self._by_progress:
            return
        events = selectors.EVENT_WRITE if connection.wants_write else selectors.EVENT_READ
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)


def _answered_at(connection: Connection) -> float:
    return connection.answered_at
