"""Clients and an app that do anything at any moment: nothing stays in flight."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time

import pytest

from tests.sidecar.proxy_ends import (
    GET,
    OK,
    Proxied,
    proxied,
    read_exactly,
    read_head,
)

RESET = struct.pack("ii", 1, 0)


def visits(ends: Proxied, seed: int) -> None:
    for turn in range(12):
        visit(ends, random.Random(seed + turn))


def visit(ends: Proxied, chance: random.Random) -> None:
    """A few requests, with a goodbye at any moment."""
    wires = [
        GET,
        b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789",
        b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    ]
    with ends.connect() as client:
        client.settimeout(0.05)
        try:
            for _ in range(chance.randrange(1, 4)):
                wire = chance.choice(wires)
                client.sendall(wire[: chance.choice([len(wire), chance.randrange(len(wire))])])
                if chance.random() < 0.7:
                    client.recv(chance.randrange(1, 500))
        except OSError:
            pass
        if chance.random() < 0.3:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def capricious(peer: socket.socket) -> None:
    """An app that answers, breaks off, hangs up or lets a client wait."""
    chance = random.Random(peer.getpeername()[1])
    while True:
        head = read_head(peer)
        if b"chunked" in head:
            read_exactly(peer, 13)
        elif b"POST" in head:
            read_exactly(peer, 9)
        mood = chance.random()
        if mood < 0.1:
            return
        if mood < 0.2:
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nha")
            return
        if mood < 0.3:
            peer.sendall(b"nonsense\r\n\r\n")
        elif mood < 0.4 and b"Upgrade" in head:
            peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        elif mood < 0.5:
            time.sleep(0.02)
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            return
        else:
            peer.sendall(OK)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_nothing_stays_in_flight(seed: int) -> None:
    with proxied(capricious) as ends:
        threads = [threading.Thread(target=visits, args=(ends, seed * 1000 + number * 30)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        counted = ends.counted()
        assert sum(counted.values()) > 50
        assert {status for _, _, status in counted} <= {"101", "200", "400", "499", "502"}
        totals = ends.totals()
        durations = sum(values[-1] for values in totals.durations.values())
        assert totals.in_flight_seconds == pytest.approx(durations, abs=0.001)
        assert ends.proxy.alive
