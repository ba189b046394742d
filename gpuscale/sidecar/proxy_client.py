"""The client's end of a forwarded connection: it owns the app's end and passes everything on."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any

import h11

from gpuscale.sidecar.proxy_connection import ClientConnection
from gpuscale.sidecar.proxy_exchange import IDEMPOTENT, Exchange, answer_for_client
from gpuscale.sidecar.proxy_headers import for_app
from gpuscale.sidecar.proxy_sides import AppSide, Side

log = logging.getLogger("gpuscale.proxy")

CLIENT_CLOSED = 499
MAX_AHEAD = 65536
"""Bytes that a client may send beyond the request that is being answered."""
CONNECT_SECONDS = 10.0


class ClientSide(ClientConnection):
    """Passes on what the client sends to the app, and what the app answers to the client."""

    # --- the client's events

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        if self.tunnelled and self._app is not None:
            self._app.transport.write(data)
            return
        self.http.receive_data(data)
        self._pump_request()

    def eof_received(self) -> bool:
        if self.tunnelled:
            return self.half_closed(self)
        return False  # as Go and uvicorn have it: a client that closes its side has gone away

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.all.discard(self)
        self._end(101 if self.tunnelled else CLIENT_CLOSED)
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop_app(abort=not self.tunnelled)

    def pause_writing(self) -> None:
        if self._app is not None:
            self._app.hold("client")

    def resume_writing(self) -> None:
        if self._app is not None:
            self._app.release("client")

    # --- from the client to the app

    def _pump_request(self) -> None:
        out: list[bytes] = []
        try:
            while self._connecting is None and not self._lingers:
                event = self.http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    self._note_waiting(event is h11.PAUSED)
                    break
                if isinstance(event, h11.Request):
                    self._begin(event, out)
                elif isinstance(event, (h11.Data, h11.EndOfMessage)) and self._app is not None:
                    if self._exchange is not None:
                        self._exchange.has_body |= isinstance(event, h11.Data)
                        self._exchange.complete = isinstance(event, h11.EndOfMessage)
                    out.append(self._app.http.send(event) or b"")
                elif isinstance(event, h11.ConnectionClosed):
                    self.transport.close()
                    break
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, f"{error}")
        except h11.LocalProtocolError as error:
            log.debug("the app's side cannot take the request: %s", error)
            self.abort()
        if self._app is not None and out:
            self._app.transport.write(b"".join(out))
        self._next_cycle()

    def _note_waiting(self, paused: bool) -> None:
        held = self.http.trailing_data[0]
        idle = self._exchange is None and self.http.our_state is h11.IDLE
        if idle and held and self.waiting_since is None:
            self.waiting_since = monotonic()  # between requests it lasts as long as the app's own connection
        if paused and len(held) > MAX_AHEAD:
            self.hold("ahead")
        elif not paused:
            self.release("ahead")

    def _begin(self, request: h11.Request, out: list[bytes]) -> None:
        self.waiting_since = None
        plan = self._proxy.plan
        authority = f"{plan.host}:{plan.port}".encode("ascii", "replace")
        headers = for_app(request.headers.raw_items(), self._peer, authority)
        self._exchange = Exchange(self._proxy, request, headers)
        if self._app is not None:
            self._app.reused = True
            out.append(self._app.http.send(self._exchange.request) or b"")
        else:
            self._connect(self._exchange)

    def _connect(self, exchange: Exchange) -> None:
        self.hold("connecting")
        self._connecting = self._clients.loop.create_task(self._connected(exchange))

    async def _connected(self, exchange: Exchange) -> None:
        plan, loop = self._proxy.plan, self._clients.loop
        try:
            _, app = await asyncio.wait_for(
                loop.create_connection(lambda: AppSide(self), plan.host, plan.port), CONNECT_SECONDS
            )
        except (OSError, asyncio.TimeoutError) as error:
            self._connecting = None
            self._refuse(502, f"the app on {plan.host} port {plan.port} cannot be reached: {error or 'timeout'}")
            return
        finally:
            if not self.transport.is_closing():
                self.release("connecting")
        self._connecting = None
        if self.transport.is_closing():
            app.transport.abort()
            return
        self._app = app
        wire = app.http.send(exchange.request) or b""
        if exchange.complete:  # it is asked again
            wire += app.http.send(h11.EndOfMessage()) or b""
        app.transport.write(wire)
        self._pump_request()

    # --- from the app to the client

    def pump_answer(self, app: AppSide) -> None:
        """Pass on what the app has answered."""
        if app is not self._app:
            return
        if self._exchange is not None:
            self._exchange.answered = True
        out: list[bytes] = []
        try:
            while True:
                event: Any = app.http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
                self._pass_on(event, out)
                if self.tunnelled:
                    break
        except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            self.transport.write(b"".join(out))
            self._bad_answer(f"the app's answer is not HTTP/1.1: {error}")
            return
        if out:
            self.transport.write(b"".join(out))
        if self.tunnelled:
            self._open_tunnel(app)
        else:
            self._next_cycle()

    def _pass_on(self, event: Any, out: list[bytes]) -> None:
        exchange = self._exchange
        if exchange is None:
            raise h11.RemoteProtocolError("an answer without a request")
        if isinstance(event, (h11.InformationalResponse, h11.Response)):
            self.tunnelled = event.status_code == 101
            self._status = event.status_code
            event = answer_for_client(event, closes=self._proxy.draining)
        out.append(self.http.send(event) or b"")
        if isinstance(event, h11.EndOfMessage):
            self._end(self._status)
        elif isinstance(event, h11.Response) and self.http.our_state is h11.SWITCHED_PROTOCOL:
            self.tunnelled = True  # CONNECT

    def _open_tunnel(self, app: AppSide) -> None:
        self.transport.write(app.http.trailing_data[0])
        app.transport.write(self.http.trailing_data[0])
        self.release("ahead")

    def half_closed(self, side: Side) -> bool:
        """One side of the tunnel will not write any more; True while the other one may."""
        other = self._app if side is self else self
        self._half_closed.add(side)
        if other is None or len(self._half_closed) == 2:
            self._end(101)
            self._drop_app()
            self.transport.close()
            return False
        other.end_writing()
        return True

    # --- the ends of things

    def _next_cycle(self) -> None:
        """When both sides are done with a request, make ready for the next one."""
        if self._exchange is not None or self._connecting is not None or self.tunnelled or self._lingers:
            return
        if self.http.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR):
            self._linger()
            return
        if self.http.our_state is not h11.DONE:
            return
        app = self._app
        if app is not None and app.http.our_state is h11.DONE and app.http.their_state is h11.DONE:
            app.http.start_next_cycle()
        elif app is not None and app.http.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            self._drop_app()  # it said so: the client may ask again all the same
        if self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
            self.release("ahead")
            self._pump_request()
        elif self._app is None:
            self._linger()  # the answer came before the request's end, and nobody reads the rest

    def app_lost(self, app: AppSide) -> None:
        """The app closed its connection."""
        if app is not self._app:
            return
        self._app = None
        exchange = self._exchange
        if self.tunnelled:
            self._end(101)
            self.transport.close()
        elif exchange is None:
            # An idle connection: the client is to know too, so that it does not send into the void.
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                self._linger()
        elif exchange.answered:
            self._end(502)
            self.abort()  # the client must see that the answer is not whole
        elif not app.reused:
            self._refuse(502, "the app closed the connection without an answer")
        elif exchange.request.method in IDEMPOTENT and exchange.complete and not exchange.has_body:
            self._connect(exchange)  # RFC 9110, 9.2.2: it closed an idle connection as the request came
        else:
            self._end(502)
            self.abort()  # as without us: a client knows whether it may send such a request again

    def _bad_answer(self, message: str) -> None:
        log.warning(message)
        self._drop_app(abort=True)
        if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(502, message)
        else:
            self._end(502)
            self.abort()
