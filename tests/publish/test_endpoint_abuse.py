"""The endpoint among clients that mean harm or are broken: a regular scrape beside them goes on answering."""

from __future__ import annotations

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event

import pytest

from gpuscale.publish import http_loop
from gpuscale.publish.endpoint import MetricsServer
from tests.publish.endpoint_clients import GET, PAGE, ask, connect, is_closed, read_answer, serving, until

SCRAPES = 40


def open_connections(server: MetricsServer) -> int:
    assert server._loop is not None
    return server._loop.connections


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def scrape(port: int, count: int = SCRAPES) -> list[float]:
    """Seconds of regular scrapes, each with a connection of its own; each must be whole."""
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        status, _, body = ask(port, GET)
        seconds.append(time.perf_counter() - begun)
        assert (status, body) == (200, PAGE)
    return seconds


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    before = threading.active_count()
    with serving() as server:
        yield server
        assert server.alive
        assert threading.active_count() <= before + 1
    assert threading.active_count() <= before


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_connections(server: MetricsServer, many_files: None) -> None:
    memory = resident()
    idle = [connect(server.port) for _ in range(1000)]
    until(lambda: open_connections(server) == http_loop.MAX_CONNECTIONS)
    scrape(server.port)
    # The oldest gave way, the youngest are there; both ends of all sockets are in this process's memory.
    assert is_closed(idle[0])
    idle[-1].sendall(GET)
    assert read_answer(idle[-1])[2] == PAGE
    assert resident() - memory < 16 * 2**20
    for client in idle:
        client.close()
    until(lambda: open_connections(server) == 0)


def test_slow_readers_that_ask_for_more_and_more(server: MetricsServer) -> None:
    slow = [connect(server.port, receive_buffer=2048) for _ in range(100)]
    memory = resident()
    for client in slow:
        client.setblocking(False)
        try:
            while client.send(GET * 50):
                pass
        except BlockingIOError:
            pass
    scrape(server.port)
    assert resident() - memory < 24 * 2**20
    for client in slow:
        client.close()
    until(lambda: open_connections(server) == 0)


def test_a_reader_too_slow_is_closed(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "WRITE_SECONDS", 0.3)
    with connect(server.port, receive_buffer=2048) as client:
        client.setblocking(False)
        try:
            while client.send(GET):
                pass
        except (BlockingIOError, ConnectionError):
            pass
        until(lambda: open_connections(server) == 0)


def test_unsent_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "MAX_UNSENT", 3 * len(PAGE))
    slow = [connect(server.port, receive_buffer=2048) for _ in range(20)]
    for client in slow:
        client.setblocking(False)
        try:
            while client.send(GET * 20):
                pass
        except (BlockingIOError, ConnectionError):
            pass
    until(lambda: open_connections(server) <= 8)
    scrape(server.port, 3)
    for client in slow:
        client.close()


def test_half_sent_requests(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "HEAD_SECONDS", 0.5)
    halves = [connect(server.port) for _ in range(100)]
    for client in halves:
        client.sendall(GET[: random.Random(client.fileno()).randrange(1, len(GET) - 4)])
    scrape(server.port)
    assert read_answer(halves[0])[0] == 408
    for client in halves:
        assert is_closed(client)
        client.close()


def test_a_head_that_drips_does_not_win_time(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "HEAD_SECONDS", 0.5)
    with connect(server.port) as client:
        begun = time.monotonic()
        try:
            for byte in GET[:-2] + b"A: b\r\n" * 2000:
                client.send(bytes([byte]))
                time.sleep(0.05)
                if client.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                    break
        except BlockingIOError:
            pass
        until(lambda: open_connections(server) == 0, 10)
        assert time.monotonic() - begun < 8


def test_who_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "FIRST_BYTE_SECONDS", 0.2)
    monkeypatch.setattr(http_loop, "KEEP_ALIVE_SECONDS", 0.2)
    silent, polite = connect(server.port), connect(server.port)
    polite.sendall(GET)
    assert read_answer(polite)[0] == 200
    assert is_closed(silent)
    assert is_closed(polite)


def test_garbage(server: MetricsServer) -> None:
    chance = random.Random(4)
    for _ in range(60):
        with connect(server.port) as client:
            try:
                for _ in range(chance.randrange(1, 8)):
                    client.sendall(chance.choice([chance.randbytes(chance.randrange(1, 9000)), GET, b"\r\n" * 9000]))
            except ConnectionError:
                pass
    scrape(server.port)
    until(lambda: open_connections(server) == 0)


def test_clients_that_reset(server: MetricsServer) -> None:
    for _ in range(50):
        client = connect(server.port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(GET * 3)
        client.close()
    scrape(server.port)
    until(lambda: open_connections(server) == 0)


def test_two_hundred_scrapers_at_once(server: MetricsServer) -> None:
    """All connected before the first asks; each one asks again after its answer, over 5 rounds."""
    clients = [connect(server.port) for _ in range(200)]
    memory = resident()
    for _ in range(5):
        for client in clients:
            client.sendall(GET)
        assert len(scrape(server.port, 1)) == 1
        for client in clients:
            assert read_answer(client)[2] == PAGE
    assert open_connections(server) >= 200
    assert resident() - memory < 24 * 2**20
    for client in clients:
        client.close()


def harass(port: int, seed: int, stop: Event) -> None:
    """Half-sent, silent, slow and senseless clients, 150 at a time, up to a thousand new ones a second."""
    chance = random.Random(seed)
    held: list[socket.socket] = []
    while not stop.is_set():
        with suppress(OSError):
            client = connect(port, receive_buffer=chance.choice([None, 2048]))
            client.settimeout(0.2)
            held.append(client)
            client.sendall(chance.choice([GET[:20], b"", GET * 30, chance.randbytes(3000)]))
        time.sleep(0.001)  # or a server that waits for its turn finds more newcomers than it has room for
        if len(held) > 150:
            held.pop(chance.randrange(len(held))).close()


def test_all_of_it_at_once(server: MetricsServer) -> None:
    """A scraper among harassers that are processes of their own. Whatever is answered is whole, and it is mostly
    answered at once: with more newcomers in a scheduler's turn than there is room for, one gives way unheard."""
    context = get_context("spawn")
    stop = context.Event()
    harassers = [context.Process(target=harass, args=(server.port, seed, stop)) for seed in range(2)]
    for process in harassers:
        process.start()
    try:
        until(lambda: open_connections(server) > 200, 30)
        tries = 0
        for _ in range(100):
            answer: list[object] = []
            while not answer:
                tries += 1
                with suppress(ConnectionError):
                    answer = list(scrape(server.port, 1))
        assert tries < 200
    finally:
        stop.set()
        for process in harassers:
            process.join(10)
            process.kill()
    until(lambda: open_connections(server) == 0)


def test_no_file_descriptor_left(monkeypatch: pytest.MonkeyPatch, server: MetricsServer) -> None:
    monkeypatch.setattr(http_loop, "SWEEP_SECONDS", 0.1)
    waiting = connect(server.port)
    until(lambda: open_connections(server) == 1)
    clients = [socket.socket() for _ in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    fillers = []
    try:
        with suppress(OSError):  # until there is not one left
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for client in clients:
            client.settimeout(10)
            client.connect(("127.0.0.1", server.port))
        assert is_closed(waiting), "the oldest gives way to those who wait"
        assert is_closed(clients[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fillers:
            os.close(descriptor)
    clients[-1].sendall(GET)
    assert read_answer(clients[-1])[2] == PAGE
    for client in clients:
        client.close()
    waiting.close()
