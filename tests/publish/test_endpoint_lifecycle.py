"""How the endpoint starts, ends and forks."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Mapping

import pytest

from gpuscale.errors import ConfigurationError
from gpuscale.publish.endpoint import THREAD_NAME, MetricsServer, Response
from tests.publish.endpoint_clients import (
    GET,
    PAGE,
    ask,
    connect,
    is_closed,
    page,
    read_answer,
    serving,
    until,
)


def test_start_close_and_the_port() -> None:
    threads = threading.active_count()
    server = MetricsServer(address="127.0.0.1", port=0, handlers={"/metrics": page})
    server.start()
    server.start()
    assert threading.active_count() == threads + 1
    assert any(thread.name == THREAD_NAME and thread.daemon for thread in threading.enumerate())
    first = server.port
    assert server.url == f"http://127.0.0.1:{first}/metrics"
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        assert answer.read() == PAGE
    other = MetricsServer(address="127.0.0.1", port=first, handlers={"/metrics": page})
    with pytest.raises(OSError, match="in use"):
        other.start()
    client = connect(first)
    server.close()
    server.close()
    assert is_closed(client)
    assert threading.active_count() == threads
    again = MetricsServer(address="127.0.0.1", port=first, handlers={"/metrics": page})
    again.start()  # though connections of the first one linger in the kernel
    again.close()


@pytest.mark.parametrize(("address", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]")])
def test_the_url_is_one_that_can_be_asked(address: str, shown: str) -> None:
    server = MetricsServer(address=address, port=0, handlers={"/metrics": page})
    try:
        server.start()
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        assert server.url == f"http://{shown}:{server.port}/metrics"
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_a_stuck_handler_does_not_hold_up_the_end() -> None:
    go_on = threading.Event()

    def stuck(_: Mapping[str, str]) -> Response:
        go_on.wait(30)
        return Response(200, "text/plain", b"late")

    server = MetricsServer(address="127.0.0.1", port=0, handlers={"/metrics": stuck})
    server.start()
    with connect(server.port) as client:
        client.sendall(GET)
        until(lambda: server._loop is not None and server._loop.connections == 1)
        server.close(timeout=0.2)
        again = MetricsServer(address="127.0.0.1", port=server.port, handlers={"/metrics": page})
        again.start()
        go_on.set()
        assert ask(again.port, GET)[2] == PAGE
        again.close()


def test_a_forked_child_leaves_the_parents_server_alone() -> None:
    with serving() as server, connect(server.port) as client:
        client.sendall(GET)
        read_answer(client)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                before = len(os.listdir("/proc/self/fd"))
                server.close_inherited()
                server.close()
                # listener, epoll, both ends of the waker, the accepted connection
                status = 0 if before - len(os.listdir("/proc/self/fd")) >= 5 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        client.sendall(GET)  # the parent's epoll has kept its sockets, and the connection is open
        assert read_answer(client)[2] == PAGE
        assert ask(server.port, GET)[2] == PAGE


def test_sockets_do_not_survive_an_exec() -> None:
    with serving() as server, connect(server.port) as client:
        client.sendall(GET)
        read_answer(client)
        assert server._loop is not None
        sockets = [server._loop._listener, *(each.socket for each in server._loop._by_progress)]
        assert len(sockets) == 2
        assert not any(each.get_inheritable() for each in sockets)


def test_certificate_and_key_go_together() -> None:
    with pytest.raises(ConfigurationError, match="tls_cert and tls_key"):
        MetricsServer(address="127.0.0.1", port=0, handlers={}, tls_cert="/x")


def test_the_socket_family_follows_the_address() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = MetricsServer(address="::1", port=0, handlers={"/metrics": page})
    try:
        server.start()
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(ConnectionRefusedError):
        connect(server.port)
    server.close()
