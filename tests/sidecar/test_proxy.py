"""What the proxy passes on, in both directions, and what it counts."""

from __future__ import annotations

import hashlib
import resource
import socket
import threading

import pytest

from tests.sidecar.proxy_ends import (
    GET,
    OK,
    answers,
    proxied,
    read_exactly,
    read_head,
    read_rest,
    read_until,
)


def test_a_request_and_its_answer_pass_unchanged() -> None:
    heads: list[bytes] = []

    def script(peer: socket.socket) -> None:
        heads.append(read_head(peer))
        peer.sendall(
            b"HTTP/1.1 203 Fine By Me\r\nX-CaSe: Kept\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok"
        )

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(
            b"GET /hello?a=%20b HTTP/1.1\r\nHost: service\r\nX-CuStom: 1\r\nX-CuStom: 2\r\nUser-Agent: test\r\n\r\n"
        )
        head = read_head(client)
        assert read_exactly(client, 2) == b"ok"
        assert head.startswith(b"HTTP/1.1 203 Fine By Me\r\n")
        assert b"\r\nX-CaSe: Kept\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n" in head
        lines = heads[0].split(b"\r\n")
        assert lines[0] == b"GET /hello?a=%20b HTTP/1.1"
        assert lines[1:5] == [b"Host: service", b"X-CuStom: 1", b"X-CuStom: 2", b"User-Agent: test"]
        assert lines[5] == b"X-Forwarded-For: 127.0.0.1"
        assert ends.counted() == {("GET", "/hello", "203"): 1}


def test_what_concerns_one_connection_only_is_not_passed_on() -> None:
    heads: list[bytes] = []

    def script(peer: socket.socket) -> None:
        heads.append(read_head(peer))
        peer.sendall(
            b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n"
            b"Content-Length: 2\r\n\r\nok"
        )

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(
            b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: X-Secret, close\r\nX-Secret: 1\r\nProxy-Connection: a\r\n"
            b"X-Forwarded-For: 10.0.0.1\r\n\r\n"
        )
        head = read_head(client)
        assert b"X-Mine" not in head
        assert b"timeout" not in head
        assert b"Secret" not in heads[0]
        assert b"Proxy-Connection" not in heads[0]
        assert b"X-Forwarded-For: 10.0.0.1, 127.0.0.1\r\n" in heads[0]
        assert read_rest(client) == b"ok", "the client said close"


def test_chunks_and_trailers_pass_as_they_come() -> None:
    first_was_read = threading.Event()

    def script(peer: socket.socket) -> None:
        read_head(peer)
        assert read_until(peer, b"0\r\nX-Sum: 7\r\n\r\n").startswith(b"5\r\nhello\r\n")
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert first_was_read.wait(15)
        peer.sendall(b"3\r\ntwo\r\n0\r\nX-End: 1\r\n\r\n")

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        client.sendall(b"0\r\nX-Sum: 7\r\n\r\n")
        assert b"chunked" in read_head(client)
        assert read_exactly(client, 8) == b"3\r\none\r\n"
        assert ends.totals().in_flight == 1, "a request ends at the last byte of its answer"
        first_was_read.set()
        assert read_until(client, b"\r\n\r\n") == b"3\r\ntwo\r\n0\r\nX-End: 1\r\n\r\n"
        assert ends.counted() == {("POST", "/hello", "200"): 1}


def test_connections_are_kept_on_both_sides() -> None:
    with proxied(answers(OK)) as ends, ends.connect() as client:
        for _ in range(5):
            client.sendall(GET)
            read_head(client)
            assert read_exactly(client, 2) == b"ok"
        assert ends.app.connections == 1
        assert ends.counted() == {("GET", "/hello", "200"): 5}


def test_an_announced_close_of_the_app_does_not_cost_the_client_its_connection() -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    with proxied(script) as ends, ends.connect() as client:
        for _ in range(3):
            client.sendall(GET)
            assert b"close" not in read_head(client)
            assert read_exactly(client, 2) == b"ok"
        assert ends.app.connections == 3


@pytest.mark.parametrize(
    ("request_wire", "answer", "expected"),
    [
        (
            b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            b"Content-Length: 99",
        ),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n", b"204"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 7\r\n\r\n", b"304"),
    ],
)
def test_answers_without_a_body(request_wire: bytes, answer: bytes, expected: bytes) -> None:
    with proxied(answers(answer, OK)) as ends, ends.connect() as client:
        client.sendall(request_wire)
        assert expected in read_head(client)
        client.sendall(GET)
        assert b"200 OK" in read_head(client)
        assert read_exactly(client, 2) == b"ok"


def test_100_continue_comes_from_the_app() -> None:
    def script(peer: socket.socket) -> None:
        assert b"Expect: 100-continue" in read_head(peer)
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert read_exactly(peer, 3) == b"abc"
        peer.sendall(OK)

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"PUT /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert b"100 Continue" in read_head(client)
        client.sendall(b"abc")
        assert b"200 OK" in read_head(client)


def test_http_1_0_clients_and_answers_without_a_length() -> None:
    def script(peer: socket.socket) -> None:
        assert b"Host: 127.0.0.1:" in read_head(peer)
        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nto the end")

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
        assert read_rest(client).endswith(b"\r\n\r\nto the end")
        assert ends.counted() == {("GET", "/hello", "200"): 1}


def test_pipelined_requests_are_answered_in_turn() -> None:
    def script(peer: socket.socket) -> None:
        for _ in range(20):
            path = read_head(peer).split(b" ")[1]
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"".join(b"GET /%02d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20)))
        for number in range(20):
            read_head(client)
            assert read_exactly(client, 3) == b"/%02d" % number


@pytest.mark.parametrize("size", [1, 70_000, 5_000_000])
def test_bodies_of_any_size_both_ways(size: int) -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        body = read_exactly(peer, size)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)

    body = hashlib.shake_128(b"x").digest(size)
    with proxied(script) as ends, ends.connect() as client:
        client.sendall(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        sender = threading.Thread(target=client.sendall, args=(body,))
        sender.start()
        read_head(client)
        assert read_exactly(client, size) == body
        sender.join(10)


def test_a_client_that_does_not_read_holds_the_app_back() -> None:
    size = 64 * 2**20
    sent = []

    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            peer.sendall(bytes(2**20))
            sent.append(2**20)

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with proxied(script) as ends, ends.connect(receive_buffer=65536) as client:
        before = resident()
        client.sendall(GET)
        read_head(client)
        seen = -1
        while seen != len(sent):  # until it comes to a stop
            seen = len(sent)
            threading.Event().wait(0.3)
        assert len(sent) < 48
        assert resident() - before < 24 * 2**20
        assert read_exactly(client, size) == bytes(size)
        assert ends.counted() == {("GET", "/hello", "200"): 1}


def test_websockets_and_other_protocols_pass_both_ways() -> None:
    def script(peer: socket.socket) -> None:
        head = read_head(peer)
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert b"Sec-WebSocket-Key: abc" in head
        peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly")
        while data := peer.recv(100):
            peer.sendall(data[::-1])
        peer.sendall(b"bye")

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(
            b"GET /hello HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
            b"Sec-WebSocket-Key: abc\r\n\r\n"
        )
        head = read_head(client)
        assert b"101" in head
        assert b"Upgrade: websocket" in head
        assert read_exactly(client, 5) == b"early"
        client.sendall(b"\x81\x00abc")
        assert read_exactly(client, 5) == b"cba\x00\x81"
        assert ends.totals().in_flight == 1
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client) == b"bye"
        assert ends.counted() == {("WEBSOCKET", "/hello", "101"): 1}


def test_a_refused_upgrade_is_an_ordinary_answer() -> None:
    with proxied(answers(OK)) as ends, ends.connect() as client:
        for _ in range(2):
            client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
            assert b"200 OK" in read_head(client)
            assert read_exactly(client, 2) == b"ok"


def test_probes_are_forwarded_and_not_counted() -> None:
    with proxied(answers(OK)) as ends, ends.connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.35\r\n\r\n")
        read_head(client)
        read_exactly(client, 2)
        client.sendall(b"GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n")
        read_head(client)
        read_exactly(client, 2)
        assert ends.counted() == {}
