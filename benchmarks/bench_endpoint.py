"""The metrics endpoint under abuse: seconds of a regular scrape beside each kind of client, and what they cost.

    python -m benchmarks.bench_endpoint [--scrapes N] [--json]

The server, the abusers and the scraper are processes of their own. The page is the sidecar's with 8 simulated GPUs'
worth of series. The first row is the same scrape without any company, the floor of the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LIMIT_MS = 50.0
SERVER = """
import sys
from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot
from gpuscale.publish.collector import MetricsCollector, render
from gpuscale.publish.endpoint import MetricsServer, Response
gpus = tuple(
    GpuReading(GpuIdentity(f"GPU-0000000{n}", "bench", str(n)), True, sample_age_seconds=0.1, duty_cycle=50.0,
               busy_seconds=1234.5, memory_used_bytes=1 << 30, memory_total_bytes=80 << 30, temperature_celsius=40.0,
               power_milliwatts=70000.0, energy_joules=9999.0, pcie_bytes={"transmit": 1e9, "receive": 1e9},
               utilization_method="samples")
    for n in range(8)
)
collector = MetricsCollector(lambda: GpuSnapshot("simulated", gpus), mode="sidecar")
def page(headers):
    body, content_type = render(collector, headers.get("accept", ""))
    return Response(200, content_type, body)
server = MetricsServer(address="127.0.0.1", port=0, handlers={"/metrics": page})
server.start()
print(server.port, flush=True)
sys.stdin.read()
"""


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(30)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    return client


def scrape(client: socket.socket) -> int:
    """One request and its whole answer; bytes of the body."""
    client.sendall(GET)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")).split()[1])
    while len(body) < length:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        body += piece
    return len(body)


def nobody(port: int, ready: Event, stop: Event) -> None:
    ready.set()
    stop.wait()


def idle(port: int, ready: Event, stop: Event) -> None:
    clients = [connect(port) for _ in range(1000)]
    ready.set()
    stop.wait()
    del clients


def half_sent(port: int, ready: Event, stop: Event) -> None:
    clients = [connect(port) for _ in range(300)]
    for client in clients:
        client.sendall(GET[:25])
    ready.set()
    stop.wait()


def slow_readers(port: int, ready: Event, stop: Event) -> None:
    clients = [connect(port, 2048) for _ in range(200)]
    while not stop.is_set():
        for number, client in enumerate(clients):
            client.setblocking(False)
            try:
                client.send(GET * 20)
                client.recv(100)
            except BlockingIOError:
                pass
            except OSError:
                clients[number] = connect(port, 2048)
        ready.set()
        time.sleep(0.05)


def garbage(port: int, ready: Event, stop: Event) -> None:
    chance = random.Random(1)
    while not stop.is_set():
        with suppress(OSError), connect(port) as client:
            client.sendall(chance.choice([chance.randbytes(9000), b"A: b\r\n" * 2000, GET[:-2] + b"B: " + b"b" * 9000]))
            client.settimeout(0.05)
            client.recv(1)
        ready.set()


def scrapers(port: int, ready: Event, stop: Event) -> None:
    """200 connections, each of which asks again as soon as it was answered (a selector's worth of clients)."""
    import selectors

    selector = selectors.DefaultSelector()
    for _ in range(200):
        client = connect(port)
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ)
        client.send(GET)
    ready.set()
    while not stop.is_set():
        for key, _ in selector.select(0.1):
            client = key.fileobj  # type: ignore[assignment]
            data = client.recv(1 << 20)
            if not data:
                selector.unregister(client)
                client.close()
            elif data.endswith(b"\n"):
                client.send(GET)


COMPANY: tuple[tuple[str, Callable[[int, Event, Event], None]], ...] = (
    ("nobody", nobody),
    ("1,000 idle connections", idle),
    ("300 half-sent requests", half_sent),
    ("200 slow readers", slow_readers),
    ("garbage, huge headers", garbage),
    ("200 scrapers without a pause", scrapers),
)


def server_figures(pid: int) -> tuple[float, int]:
    """Resident MiB and threads."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"])


def measure(
    port: int, pid: int, name: str, company: Callable[[int, Event, Event], None], count: int
) -> dict[str, object]:
    context = get_context("fork")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=company, args=(port, ready, stop), daemon=True)
    process.start()
    ready.wait(60)
    time.sleep(0.5)
    seconds = []
    try:
        for _ in range(count):
            begun = time.perf_counter()
            with connect(port) as client:  # the worst case: a scraper that has no connection yet
                scrape(client)
            seconds.append(time.perf_counter() - begun)
            time.sleep(0.005)
        memory, threads = server_figures(pid)
    finally:
        stop.set()
        process.join(5)
        process.kill()
    cuts = statistics.quantiles([1000 * each for each in seconds], n=100)
    return {
        "beside": name, "p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2),
        "max_ms": round(1000 * max(seconds), 2), "resident_mib": round(memory, 1), "threads": threads,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=300, help="of each row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        rows = [measure(port, server.pid, name, company, options.scrapes) for name, company in COMPANY]
    finally:
        server.kill()
        server.wait()
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        f"{'a scrape beside':31}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'MiB':>8}{'threads':>9}  (p99 ≤ {LIMIT_MS:.0f})"
    )
    for row in rows:
        print(
            f"{row['beside']:31}{row['p50_ms']:>9}{row['p99_ms']:>9}{row['max_ms']:>9}{row['resident_mib']:>8}"
            f"{row['threads']:>9}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
