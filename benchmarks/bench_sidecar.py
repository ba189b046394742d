"""What the sidecar costs: memory, CPU, start, and the proxy per request; and how it answers while the driver hangs.

    python -m benchmarks.bench_sidecar [--scrapes N] [--seconds N] [--hour] [--json]

Eight stubbed GPUs (tests/nvml_stub, whose own work is part of the figures), scrapes as Prometheus makes them (kept
connection, gzip). ``--hour`` scrapes once a second for an hour; the short form makes as many scrapes as it is told
as fast as it can, then looks at the CPU over some seconds of 1 s scrapes. The floor of the same run is
``python -c "import prometheus_client"``.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.nvml_stub import Stub
from tests.sidecar.processes import ISOLATED, free_port

ROOT = Path(__file__).resolve().parents[1]
GPUS = 8
STARTS = 7
REQUESTS = 3000
HUNG_SCRAPES = 500
START_LIMIT = 60.0
APP = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0)); print(listener.getsockname()[1], flush=True)
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 10\\r\\n\\r\\nPlayMusic."
def serve(peer):
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while peer.recv(65536): peer.sendall(answer)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def status_field(pid: int, name: str) -> int:
    """KiB, or a number, of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def cpu_seconds(pid: int) -> float:
    """Time on a CPU so far, over all threads, in the scheduler's nanoseconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def floor_kib() -> int:
    code = "import prometheus_client, sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        return status_field(process.pid, "VmRSS")
    finally:
        process.kill()
        process.communicate()


def start(stub: Stub, port: int, *arguments: str) -> subprocess.Popen[bytes]:
    environ = stub.env({**os.environ, "PYTHONPATH": str(ROOT)}, log=False)
    command = [sys.executable, "-c", ISOLATED, "sidecar", "--address", "127.0.0.1", "--port", str(port)]
    return subprocess.Popen([*command, "--gpus", "all", "--log-level", "error", *arguments], env=environ)


def scrape(connection: http.client.HTTPConnection) -> bytes:
    headers = {"Accept-Encoding": "gzip", "Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    connection.request("GET", "/metrics", headers=headers)
    return connection.getresponse().read()


def first_good_scrape(process: subprocess.Popen[bytes], port: int, begun: float) -> float:
    """Seconds from the start of the process to a page with the GPUs on it."""
    while process.poll() is None and time.perf_counter() < begun + START_LIMIT:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/metrics")
            if b"nvidia_gpu_memory_used_bytes{" in connection.getresponse().read():
                return time.perf_counter() - begun
        connection.close()
        time.sleep(0.002)
    raise SystemExit(f"the sidecar ended, or showed no GPU within {START_LIMIT:.0f} s")


def measure_starts(stub: Stub) -> list[float]:
    seconds = []
    for _ in range(STARTS):
        port, begun = free_port(), time.perf_counter()
        process = start(stub, port)
        try:
            seconds.append(first_good_scrape(process, port, begun))
        finally:
            process.kill()
            process.wait()
    return seconds


def measure_sidecar(stub: Stub, scrapes: int, seconds: int, hour: bool) -> dict[str, float]:
    port = free_port()
    process = start(stub, port)
    try:
        first_good_scrape(process, port, time.perf_counter())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        began = status_field(process.pid, "VmRSS")
        if not hour:
            for _ in range(scrapes):
                scrape(connection)
        count = 3600 if hour else seconds
        cpu, at = cpu_seconds(process.pid), time.monotonic()
        for number in range(count):
            scrape(connection)
            time.sleep(max(0.0, at + number + 1 - time.monotonic()))
        share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - at)
        return {
            "resident_at_start_mib": began / 1024,
            "resident_after_mib": status_field(process.pid, "VmRSS") / 1024,
            "resident_peak_mib": status_field(process.pid, "VmHWM") / 1024,
            "cpu_percent": 100 * share,
            "threads": status_field(process.pid, "Threads"),
            "scrapes": count + (0 if hour else scrapes),
            "page_bytes": len(scrape(connection)),
        }
    finally:
        process.kill()
        process.wait()


def measure_hang(stub: Stub) -> dict[str, float]:
    """Scrapes, and the end, while a call of the driver does not come back."""
    port = free_port()
    process = start(stub, port)
    try:
        first_good_scrape(process, port, time.perf_counter())
        order, before = stub.hang("nvmlDeviceGetMemoryInfo"), time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        time.sleep(1.5)  # the next reading has begun and hangs
        seconds = []
        for _ in range(HUNG_SCRAPES):
            begun = time.perf_counter()
            scrape(connection)
            seconds.append(time.perf_counter() - begun)
            time.sleep(0.005)
        while b"nvidia_gpu_memory_used_bytes{" in gzip.decompress(scrape(connection)):
            time.sleep(0.05)
        vanished = time.monotonic() - before
        begun = time.perf_counter()
        process.terminate()
        process.wait(30)
        stub.release(order)
        return {
            "scrape_p50_ms": 1e3 * statistics.median(seconds),
            "scrape_p99_ms": 1e3 * statistics.quantiles(seconds, n=100)[98],
            "values_vanish_seconds": vanished,
            "sigterm_seconds": time.perf_counter() - begun,
        }
    finally:
        process.kill()
        process.wait()


def requests(port: int, count: int) -> list[float]:
    """Seconds of each of ``count`` requests over one kept connection."""
    seconds = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begun = time.perf_counter()
            client.sendall(b"GET /predict?query=music HTTP/1.1\r\nHost: service\r\nUser-Agent: bench\r\n\r\n")
            data = b""
            while not data.endswith(b"PlayMusic."):
                data += client.recv(65536)
            seconds.append(time.perf_counter() - begun)
    return seconds


def measure_proxy(stub: Stub) -> dict[str, float]:
    app = subprocess.Popen([sys.executable, "-c", APP], stdout=subprocess.PIPE)
    assert app.stdout is not None
    app_port, port, metrics = int(app.stdout.readline()), free_port(), free_port()
    process = start(stub, metrics, "--gpu", "none", "--proxy", f"{port}:127.0.0.1:{app_port}", "--route", "/predict")
    try:
        begun = time.monotonic()
        while time.monotonic() - begun < 20:
            with suppress(OSError):
                requests(port, 100)
                break
            time.sleep(0.05)
        direct, proxied, cpu = [], [], 0.0
        for _ in range(5):  # in turns, so that what else the machine does falls on both
            direct += requests(app_port, REQUESTS // 5)
            before = cpu_seconds(process.pid)
            proxied += requests(port, REQUESTS // 5)
            cpu += cpu_seconds(process.pid) - before
        crowd = [threading.Thread(target=requests, args=(port, 200)) for _ in range(32)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        return {
            "direct_p50_us": 1e6 * statistics.median(direct),
            "proxied_p50_us": 1e6 * statistics.median(proxied),
            "added_p50_us": 1e6 * (statistics.median(proxied) - statistics.median(direct)),
            "cpu_us_per_request": 1e6 * cpu / len(proxied),
            "resident_mib": status_field(process.pid, "VmRSS") / 1024,
        }
    finally:
        for each in (process, app):
            each.kill()
            each.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=1000, help="as fast as they go, before the CPU is looked at")
    parser.add_argument("--seconds", type=int, default=20, help="of 1 s scrapes for the CPU's share")
    parser.add_argument("--hour", action="store_true", help="an hour of 1 s scrapes instead of both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stub = Stub.create(Path(folder), gpus=GPUS)
        for gpu in range(GPUS):
            stub.set(f"gpu.{gpu}.util", 50)
        floor = floor_kib() / 1024
        starts = measure_starts(stub)
        sidecar = measure_sidecar(stub, options.scrapes, options.seconds, options.hour)
        hung = measure_hang(stub)
        proxy = measure_proxy(stub)
    result = {"floor_mib": floor, "start_seconds": statistics.median(starts), "start_worst_seconds": max(starts)}
    rows = {**result, **{f"sidecar_{name}": value for name, value in sidecar.items()}}
    rows.update({f"hung_{name}": value for name, value in hung.items()})
    rows.update({f"proxy_{name}": value for name, value in proxy.items()})
    if options.json:
        print(json.dumps({name: round(value, 3) for name, value in rows.items()}, indent=1))
        return 0
    resident, peak = sidecar["resident_after_mib"], sidecar["resident_peak_mib"]
    lines = [
        ('floor: python -c "import prometheus_client"', f"{floor:.1f} MiB", ""),
        (f"resident after {sidecar['scrapes']:.0f} scrapes", f"{resident:.1f} MiB", "≤ 32"),
        ("  over the floor, at the start, at its peak", f"{resident - floor:.1f}, "
         f"{sidecar['resident_at_start_mib']:.1f}, {peak:.1f} MiB", ""),
        (f"CPU with {GPUS} GPUs, 1 s scrapes", f"{sidecar['cpu_percent']:.2f} % of a core", "≤ 0.5"),
        ("start to first good scrape: median, worst", f"{statistics.median(starts):.2f}, {max(starts):.2f} s", "≤ 1"),
        ("threads; bytes of a page (gzip)", f"{sidecar['threads']:.0f}; {sidecar['page_bytes']:.0f}", ""),
        ("a scrape while the driver hangs: p50, p99", f"{hung['scrape_p50_ms']:.2f}, {hung['scrape_p99_ms']:.2f} ms",
         "≤ 5"),
        ("  until its values are gone", f"{hung['values_vanish_seconds']:.1f} s", "≤ 10 and a reading"),
        ("  SIGTERM to the end", f"{hung['sigterm_seconds']:.2f} s", "≤ 2"),
        ("a request to the app itself, p50", f"{proxy['direct_p50_us']:.0f} µs", ""),
        ("  through the proxy, p50", f"{proxy['proxied_p50_us']:.0f} µs", ""),
        ("  added; of it CPU time of the proxy", f"{proxy['added_p50_us']:.0f} µs; "
         f"{proxy['cpu_us_per_request']:.0f} µs", ""),
        ("resident with the proxy after 10,000 requests, 32 at once", f"{proxy['resident_mib']:.1f} MiB", ""),
    ]  # fmt: skip
    for what, figure, wanted in lines:
        print(f"{what:58}{figure:>26}   {wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
