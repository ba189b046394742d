"""Disconnects, broken apps and hostile clients: each shows on the other side, and nothing stays in flight."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

from gpuscale.sidecar import proxy_clients
from tests.sidecar.proxy_ends import (
    GET,
    OK,
    answers,
    proxied,
    read_exactly,
    read_head,
    read_rest,
    until,
)

RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_goes_away(reset: bool, answered: bool) -> None:
    gone = threading.Event()

    def script(peer: socket.socket) -> None:
        read_head(peer)
        if answered:
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        read_rest(peer)
        gone.set()

    with proxied(script) as ends:
        with ends.connect() as client:
            client.sendall(GET)
            if answered:
                read_head(client)
            until(lambda: ends.proxy.active == 1)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert gone.wait(10), "the app is told"
        assert ends.counted() == {("GET", "/hello", "499"): 1}


def test_a_client_that_goes_away_within_its_request() -> None:
    received: list[bytes] = []

    def script(peer: socket.socket) -> None:
        read_head(peer)
        received.append(read_rest(peer))

    with proxied(script) as ends:
        with ends.connect() as client:
            client.sendall(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf of it")
            until(lambda: ends.proxy.active == 1)
            until(lambda: ends.app.connections == 1)
            time.sleep(0.05)
        assert ends.counted() == {("POST", "/hello", "499"): 1}
        until(lambda: bool(received))
        assert b"half of it".startswith(received[0])


def test_no_app() -> None:
    with proxied(answers(OK)) as ends:
        ends.app.close()
        for request in (
            GET,
            GET.replace(b"GET", b"HEAD"),
            b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n",
        ):
            with ends.connect() as client:
                client.sendall(request)
                head = read_head(client)
                assert head.startswith(b"HTTP/1.1 502 Bad Gateway")
                body = read_rest(client)
                assert (body == b"") is request.startswith(b"HEAD")
        assert ends.counted() == {(method, "/hello", "502"): 1 for method in ("GET", "HEAD", "POST")}


def test_an_app_that_comes_back() -> None:
    """The client's connection was kept: an app that restarts is found again."""
    with proxied(answers(OK)) as ends:
        with ends.connect() as client:
            client.sendall(GET)
            read_head(client)
        with ends.connect() as client:
            client.sendall(GET)
            read_head(client)
            assert read_exactly(client, 2) == b"ok"


@pytest.mark.parametrize(
    "wire", [b"", b"HTTP/1.1 banana\r\n\r\n", b"\x00\x01\x02", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
def test_an_app_that_does_not_answer_http(wire: bytes) -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(wire)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(GET)
        assert b"502 Bad Gateway" in read_head(client)
        read_rest(client)
        assert ends.counted() == {("GET", "/hello", "502"): 1}


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZZ\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_seen_to(start: bytes) -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(start)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(GET)
        rest = read_rest(client)
        assert not rest.endswith(b"0\r\n\r\n"), "it must not look complete"
        assert ends.counted() == {("GET", "/hello", "502"): 1}


def test_an_idle_connection_that_the_app_closes_is_closed_for_the_client() -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(OK)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(GET)
        read_head(client)
        assert read_exactly(client, 2) == b"ok"
        assert read_rest(client) == b""


def closing_at_the_second(peer: socket.socket) -> None:
    """As if its idle timeout came at the same moment as the request."""
    read_head(peer)
    peer.sendall(OK)
    read_head(peer)


def test_a_get_is_asked_again_where_the_app_closed_as_it_came() -> None:
    with proxied(closing_at_the_second) as ends, ends.connect() as client:
        for _ in range(4):
            client.sendall(GET)
            assert b"200 OK" in read_head(client)
            assert read_exactly(client, 2) == b"ok"
        assert ends.app.connections == 4
        assert ends.counted() == {("GET", "/hello", "200"): 4}


def test_a_post_is_never_sent_twice() -> None:
    posts = []

    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(OK)
        posts.append(read_head(peer))

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(GET)
        read_head(client)
        read_exactly(client, 2)
        client.sendall(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert read_rest(client) == b"", "the client decides"
        assert len(posts) == 1
        assert ends.counted() == {("GET", "/hello", "200"): 1, ("POST", "/hello", "502"): 1}


def test_an_answer_before_the_requests_end() -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n")
        peer.shutdown(socket.SHUT_WR)
        time.sleep(0.2)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + bytes(10_000))
        assert b"413 Too Large" in read_head(client)
        assert read_exactly(client, 3) == b"no\n"
        assert read_rest(client) == b""
        assert ends.counted() == {("POST", "/hello", "413"): 1}


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 70_000, b"431"),
    ],
)
def test_what_is_not_http_never_reaches_the_app(wire: bytes, status: bytes) -> None:
    with proxied(answers(OK)) as ends, ends.connect() as client:
        client.sendall(wire)
        assert read_head(client).split(b" ")[1] == status
        read_rest(client)
        assert ends.app.connections == 0
        assert ends.counted() == {}


def test_two_lengths_in_one_request_are_one_for_the_app() -> None:
    heads = []

    def script(peer: socket.socket) -> None:
        heads.append(read_head(peer))
        read_head(peer)
        peer.sendall(OK)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(
            b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\nZ\r\n0\r\n\r\n"
        )
        read_head(client)
        assert b"Content-Length" not in heads[0]


def test_half_a_head_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_clients, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(proxy_clients, "SWEEP_SECONDS", 0.1)
    with proxied(answers(OK)) as ends, ends.connect() as half, ends.connect() as silent:
        half.sendall(GET[:10])
        assert b"408" in read_head(half)
        assert b"408" in read_head(silent)


def test_both_ways_of_ending_a_tunnel() -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        if peer.recv(1) == b"a":
            return  # the app ends it
        read_rest(peer)

    with proxied(script) as ends:
        for first, reset in ((b"a", False), (b"b", False), (b"b", True)):
            with ends.connect() as client:
                client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
                read_head(client)
                client.sendall(first)
                if first == b"a":
                    assert read_rest(client) == b""
                elif reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert ends.counted() == {("GET", "/hello", "101"): 3}
