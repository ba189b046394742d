"""Real servers for the tests, each a process of its own: one worker or several, with their metrics."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = range(20000, 30000)
"""Below those that the kernel gives to outgoing connections, of which one could take a port before its server does."""
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
    """A port of loopback that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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
def serve(command: list[str], tmp_path: Path, *, on_app: bool = False) -> Iterator[Server]:
    """Run ``command`` until the block ends, from when it answers and its metrics are there."""
    port, metrics_port = free_port(), free_port()
    where = ["--port", str(port)] if "uvicorn" == command[2] else ["--bind", f"127.0.0.1:{port}"]
    environment = {
        **os.environ, "GPUSCALE_PORT": str(metrics_port), "GPUSCALE_ADDRESS": "127.0.0.1", "GPUSCALE_GPU": "simulated",
        "TEST_APP": "flask" if WSGI in command else "fastapi", "GPUSCALE_GPU_INTERVAL": "0.25",
        "GPUSCALE_ON_APP": str(on_app).lower(),
    }  # fmt: skip
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *where], cwd=ROOT, env=environment, stdout=output, stderr=output)
    server = Server(port, port if on_app else metrics_port, process, log)
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
        name = f"app-{metrics_port}" if on_app else metrics_port
        shutil.rmtree(f"/dev/shm/gpuscale-{os.getuid()}-{name}", ignore_errors=True)
    assert "Traceback" not in log.read_text()
