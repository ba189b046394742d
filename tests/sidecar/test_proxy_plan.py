"""What the proxy is told: its plan, its routes, that it is to end."""

from __future__ import annotations

import socket
import threading

import pytest

from gpuscale.errors import ConfigurationError, GpuscaleError
from gpuscale.settings import Settings
from gpuscale.sidecar.proxy import Proxy, ProxyPlan, Routes
from tests.sidecar.proxy_ends import (
    GET,
    OK,
    proxied,
    read_head,
    read_rest,
    until,
)


def test_routes_are_the_given_ones() -> None:
    routes = Routes(("/predict", "/v1/*"))
    assert routes.label("/predict") == "/predict"
    assert routes.label("/predict/x") == "unmatched"
    assert routes.label("/v1/models/7") == "/v1/*"
    for wrong in ("predict", "/a/*/b"):
        with pytest.raises(ConfigurationError, match="--route"):
            Routes((wrong,))


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("8000:127.0.0.1:80", ProxyPlan(8000, "127.0.0.1", 80)),
        ("8000:80", ProxyPlan(8000, "127.0.0.1", 80)),
        ("8000:[::1]:80", ProxyPlan(8000, "::1", 80)),
        ("8000:app.local:80", ProxyPlan(8000, "app.local", 80)),
    ],
)
def test_the_plan(text: str, plan: ProxyPlan) -> None:
    assert ProxyPlan.parse(text) == plan


@pytest.mark.parametrize("text", ["", "80", "a:b:c", "70000:x:1", "8000:x:0", "8000:::1:80", "8000:http://x:80"])
def test_a_wrong_plan_says_what_is_wanted(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"8000:127\.0\.0\.1:80"):
        ProxyPlan.parse(text)


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        proxy = Proxy(ProxyPlan(taken.getsockname()[1], "127.0.0.1", 1), Settings())
        with pytest.raises(GpuscaleError, match="--proxy"):
            proxy.start()


def test_draining_answers_and_says_close() -> None:
    go_on = threading.Event()

    def script(peer: socket.socket) -> None:
        head = read_head(peer)
        if b"/slow" in head:
            go_on.wait(15)
        peer.sendall(OK)

    with proxied(script) as ends, ends.connect() as slow:
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: ends.proxy.active == 1)
        drained = threading.Thread(target=ends.proxy.drain, args=(30,), daemon=True)
        drained.start()
        until(lambda: ends.proxy.draining)
        with ends.connect() as late:  # before every node knows that the pod is ending
            late.sendall(GET)
            assert b"Connection: close" in read_head(late)
            assert read_rest(late) == b"ok"
        drained.join(1.5)
        assert drained.is_alive(), "one request has not ended"
        go_on.set()
        assert b"Connection: close" in read_head(slow)
        assert read_rest(slow) == b"ok"
        drained.join(10)
        assert not drained.is_alive()


def test_draining_is_bounded() -> None:
    def script(peer: socket.socket) -> None:
        read_head(peer)
        peer.recv(1)  # never answers

    with proxied(script) as ends, ends.connect() as client:
        client.sendall(GET)
        until(lambda: ends.proxy.active == 1)
        ends.proxy.drain(0.3)
        assert ends.proxy.active == 1
