"""What the endpoint answers."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuscale.publish.endpoint import Response
from gpuscale.publish.http_message import MAX_HEAD_BYTES, RefusedError, parse_head, take_head
from tests.publish.endpoint_clients import (
    GET,
    PAGE,
    ask,
    connect,
    healthy,
    is_closed,
    read_answer,
    serving,
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as server:
        yield server.port


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics?name[]=x", "http://host:1/metrics"])
def test_the_page_has_these_addresses(port: int, path: str) -> None:
    status, headers, body = ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (status, body) == (200, PAGE)
    assert headers["content-type"].startswith("text/plain")


def test_head_has_the_headers_of_get_and_no_body(port: int) -> None:
    status, headers, body = ask(port, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", head_only=True)
    assert (status, headers["content-length"], body) == (200, str(len(PAGE)), b"")


def test_the_index_links_the_pages(port: int) -> None:
    status, headers, body = ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b'href="/metrics"' in body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /met rics HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_everything_else_is_refused(port: int, request_bytes: bytes, status: int) -> None:
    got, headers, body = ask(port, request_bytes)
    assert got == status
    assert body.endswith(b"\n")
    if status == 405:
        assert headers["allow"] == "GET, HEAD"


def test_a_refused_client_reads_its_answer_before_the_end(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /" + b"a" * 100_000)
        assert read_answer(client)[0] == 414
        assert is_closed(client)


def test_connections_are_kept(port: int) -> None:
    with connect(port) as client:
        for _ in range(3):
            client.sendall(GET)
            assert read_answer(client)[2] == PAGE
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status, headers, _ = read_answer(client)
        assert (status, headers["connection"]) == (200, "close")
        assert is_closed(client)


def test_http_1_0_is_closed_after_the_answer(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /metrics HTTP/1.0\n\n")
        assert read_answer(client)[2] == PAGE
        assert is_closed(client)


def test_pipelined_requests_are_answered_in_turn(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        data = b""
        while data.count(b"ok\n") < 20:
            data += client.recv(65536)
        assert data.count(b"HTTP/1.1 200 OK") == 20


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("deflate, gzip;q=0.5", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
def test_gzip_for_those_who_ask(port: int, accepted: str, packed: bool) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accepted}\r\n\r\n"
    _, headers, body = ask(port, request.encode())
    assert (headers.get("content-encoding") == "gzip") is packed
    assert (gzip.decompress(body) if packed else body) == PAGE
    assert headers["vary"] == "Accept-Encoding"


def test_a_handler_that_fails_is_a_500_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Mapping[str, str]) -> Response:
        raise ZeroDivisionError("as the test wants it")

    with serving(handlers={"/metrics": broken, "/healthz": healthy}) as server:
        for _ in range(3):
            assert ask(server.port, GET)[0] == 500
        assert ask(server.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200
    records = [record for record in caplog.records if record.name == "gpuscale.endpoint"]
    assert len(records) == 1, "it is said once for a while, not at each scrape"
    assert "as the test wants it" in str(records[0].exc_info)


def test_nobody_gets_an_answer_older_than_his_question() -> None:
    count = 0

    def counting(_: Mapping[str, str]) -> Response:
        return Response(200, "text/plain", str(count).encode())

    with serving(handlers={"/metrics": counting}) as server, connect(server.port) as client:
        for expected in range(200):
            count = expected
            client.sendall(GET)
            assert read_answer(client)[2] == str(expected).encode()


def test_waiting_scrapers_share_a_rendering() -> None:
    renderings = 0
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: Mapping[str, str]) -> Response:
        nonlocal renderings
        renderings += 1
        entered.set()
        go_on.wait(10)
        return Response(200, "text/plain", b"x")

    with serving(handlers={"/metrics": slow}) as server:
        clients = [connect(server.port) for _ in range(30)]
        clients[0].sendall(GET)
        assert entered.wait(10)
        for client in clients[1:]:
            client.sendall(GET)
        go_on.set()
        for client in clients:
            assert read_answer(client)[0] == 200
            client.close()
    assert renderings <= 3


@given(st.binary(max_size=300))
def test_any_head_is_a_request_or_refused(head: bytes) -> None:
    try:
        request = parse_head(head)
    except RefusedError as error:
        status = error.status
    else:
        status = 200
        assert request.path.startswith("/")
        assert all(name == name.lower() for name in request.headers)
    assert status in (200, 400, 431, 505)


@given(st.lists(st.binary(max_size=40) | st.just(GET) | st.just(b"\r\n"), max_size=20))
def test_heads_do_not_depend_on_how_the_bytes_come(pieces: list[bytes]) -> None:
    def heads(pieces: list[bytes]) -> list[bytes | int]:
        buffer = bytearray()
        found: list[bytes | int] = []
        for piece in pieces:
            searched = len(buffer)
            buffer += piece
            try:
                while (head := take_head(buffer, searched)) is not None:
                    found.append(head)
                    searched = 0
            except RefusedError as error:
                return [*found, error.status]
        return found

    together = b"".join(pieces)
    assert heads(pieces) == heads([together]) == heads([together[at : at + 1] for at in range(len(together))])
