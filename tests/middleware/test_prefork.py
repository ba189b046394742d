"""Real servers with several workers: one endpoint, totals over all, nothing lost when a worker is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent.parent
ASGI, WSGI = "tests.middleware.prefork_apps:fast_app", "tests.middleware.prefork_apps:flask_app"
GUNICORN = [sys.executable, "-m", "gunicorn", "--workers", "4", "--graceful-timeout", "2", "--log-level", "warning"]
UVICORN = [sys.executable, "-m", "uvicorn", "--log-level", "warning", ASGI]
SERVERS = {
    "uvicorn-workers": [*UVICORN, "--workers", "4"],
    "gunicorn-sync": [*GUNICORN, WSGI],
    "gunicorn-gthread": [*GUNICORN, "-k", "gthread", "--threads", "4", WSGI],
    "gunicorn-uvicorn": [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", ASGI],
    "gunicorn-preload": [*GUNICORN, "--preload", WSGI],
    "gunicorn-preload-uvicorn": [*GUNICORN, "--preload", "-k", "uvicorn_worker.UvicornWorker", ASGI],
}


@dataclass
class Server:
    """A running server of four workers (or one)."""

    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return str(answer.read().decode())

    def page(self) -> dict[str, float]:
        """Every sample by name, those with labels as sums over them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
        return samples

    def endpoint_owners(self) -> list[int]:
        """PIDs of the group that hold a listening socket on the metrics port."""
        inodes = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{self.metrics_port:04X}") and fields[3] == "0A":
                inodes.add(f"socket:[{fields[9]}]")
        owners = []
        for pid in [self.process.pid, *self.workers()]:
            with contextlib.suppress(OSError):
                if inodes & set(_links(f"/proc/{pid}/fd")):
                    owners.append(pid)
        return owners

    def workers(self) -> list[int]:
        """The children that serve (multiprocessing's resource tracker is none)."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [
            pid for pid in map(int, children) if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]


def _links(folder: str) -> Iterator[str]:
    """What the links in a folder point at. A busy process's descriptors go while we look: those are left out."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            yield os.readlink(entry.path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Seconds until the condition held; errors count as not yet."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        with contextlib.suppress(OSError, KeyError):
            if condition():
                return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@contextlib.contextmanager
def serve(name: str, tmp_path: Path, command: list[str] | None = None) -> Iterator[Server]:
    port, metrics_port = free_port(), free_port()
    command = command or SERVERS[name]
    where = ["--port", str(port)] if "uvicorn" == command[2] else ["--bind", f"127.0.0.1:{port}"]
    environment = {
        **os.environ, "GPUSCALE_PORT": str(metrics_port), "GPUSCALE_ADDRESS": "127.0.0.1", "GPUSCALE_GPU": "simulated",
        "TEST_APP": "flask" if WSGI in command else "fastapi", "GPUSCALE_GPU_INTERVAL": "0.25",
    }  # fmt: skip
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *where], cwd=ROOT, env=environment, stdout=output, stderr=output)
    server = Server(port, metrics_port, process, log)
    try:
        wait_for("the server's start", lambda: server.get("/pid"), 40)
        wait_for("the endpoint", server.page)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(f"/dev/shm/gpuscale-{os.getuid()}-{metrics_port}", ignore_errors=True)
    assert "Traceback" not in log.read_text()


@pytest.fixture(params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serve(request.param, tmp_path) as running:
        yield running


def test_workers_share_one_endpoint_and_survive_a_kill(server: Server) -> None:
    """Totals over all workers; SIGKILL of the leader in the middle of requests: another takes over within 2 s."""
    sent = 1  # the start-up's /pid
    pids: set[str] = set()
    with ThreadPoolExecutor(8) as clients:
        # Whoever waits for connections first gets them all: only a worker that is busy leaves some to the others.
        while len(pids) < 2:
            pids |= set(clients.map(server.get, ["/busy/0.1"] * 16))
            sent += 16
            assert sent < 2000, "one worker gets every request"
    wait_for("the totals", lambda: server.page()["gpuscale_requests_total"] >= sent)
    assert server.page()["gpuscale_requests_total"] == sent
    owners = server.endpoint_owners()
    assert len(owners) == 1

    # Utilisation is what lies between two readings: without the leader's second one there is no counter to compare.
    wait_for("the leader's GPU readings", lambda: server.page()["nvidia_gpu_busy_seconds_total"] > 0)

    slow = [threading.Thread(target=_quietly, args=(server,)) for _ in range(4)]
    for thread in slow:
        thread.start()
    wait_for("requests in flight", lambda: server.page()["gpuscale_requests_in_flight"] >= 2)
    before = server.page()
    leader = owners[0]
    assert leader != server.process.pid
    os.kill(leader, signal.SIGKILL)
    takeover = wait_for("the takeover", server.page, 5)
    wait_for("the new leader's first look at the GPUs", lambda: server.page()["nvidia_gpu_busy_seconds_total"], 5)
    after = server.page()
    assert takeover < 2.0 + 1.0  # 2 s are promised; 1 s for a busy machine, and the bench prints the figure
    for counter in ("gpuscale_requests_total", "gpuscale_in_flight_seconds_total", "nvidia_gpu_busy_seconds_total"):
        assert after[counter] >= before[counter], counter
    for thread in slow:
        thread.join(15)
    wait_for("the end of what is in flight", lambda: server.page()["gpuscale_requests_in_flight"] == 0)
    wait_for("the new worker", lambda: len(server.workers()) >= 4)
    total = server.page()["gpuscale_requests_total"]
    for _ in range(20):
        server.get("/pid")
    wait_for("the totals", lambda: server.page()["gpuscale_requests_total"] >= total + 20)
    assert len(server.endpoint_owners()) == 1


def _quietly(server: Server) -> None:
    with contextlib.suppress(OSError):
        server.get("/slow/2.0")


def test_replaced_workers_lose_no_count(tmp_path: Path) -> None:
    """gunicorn's max-requests replaces its only worker again and again: the counter goes on."""
    command = [*GUNICORN, "--workers", "1", "--max-requests", "10", WSGI]
    with serve("one", tmp_path, command) as server:
        seen = 0.0
        for _ in range(35):
            with contextlib.suppress(OSError):
                server.get("/pid")
                seen += 1
            with contextlib.suppress(OSError):
                assert server.page()["gpuscale_requests_total"] + 4 >= seen
        wait_for("the endpoint", server.page)
        assert server.page()["gpuscale_requests_total"] >= 35 - 1


def test_metrics_are_quick_while_the_loop_is_blocked(tmp_path: Path) -> None:
    with serve("one", tmp_path, UVICORN) as server:
        blocked = threading.Thread(target=server.get, args=("/busy/2",))
        blocked.start()
        time.sleep(0.3)
        times = []
        for _ in range(20):
            start = time.monotonic()
            page = server.page()
            times.append(time.monotonic() - start)
        assert blocked.is_alive()
        assert sorted(times)[10] < 0.25  # milliseconds on a quiet machine; waiting for the loop would be 2 s
        wait_for("the lag", lambda: server.page()["gpuscale_event_loop_lag_seconds"] > 0.5, 2)
        blocked.join()
        assert page["gpuscale_requests_in_flight"] == 1
