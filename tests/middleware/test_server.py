"""One uvicorn process: clients that leave, WebSockets and HEAD as a real server passes them on."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.middleware.servers import UVICORN, Server, serve, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(UVICORN, tmp_path_factory.mktemp("uvicorn")) as running:
        yield running


def count(server: Server, method: str, route: str, status: str) -> float:
    """Requests with these labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    wanted = {"method": method, "route": route, "status": status}
    return sum(
        sample.value for family in families for sample in family.samples
        if sample.name == "gpuscale_requests_total" and sample.labels == wanted
    )  # fmt: skip


def test_a_client_that_leaves_a_handler_that_never_asks_is_a_499(server: Server) -> None:
    """The handler sleeps and answers into the void; only the server knows that nobody reads it."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /slow/0.5 HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for("the request in flight", lambda: server.page()["gpuscale_requests_in_flight"] == 1)
    wait_for("its end", lambda: count(server, "GET", "/slow/{seconds}", "499") == 1)
    assert server.page()["gpuscale_requests_in_flight"] == 0


def test_a_head_request_counts_under_its_method(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"HEAD /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert b"405" in client.recv(100)
    wait_for("the count", lambda: count(server, "HEAD", "/pid", "405") == 1)


def test_a_websocket_is_in_flight_until_it_closes(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/echo/a") as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=5) == "hello"
        wait_for("the connection in flight", lambda: server.page()["gpuscale_requests_in_flight"] == 1)
    wait_for("its end", lambda: count(server, "WEBSOCKET", "/echo/{name}", "101") == 1)
    assert server.page()["gpuscale_requests_in_flight"] == 0
