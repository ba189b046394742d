"""The reference service against the same model behind Flask's development server: hey against each, in one run.

    python -m benchmarks.bench_service [--json] [--requests 10000] [--clients 100] [--model FOLDER]

One after the other on loopback, each alone on the machine and warmed up: throughput, latencies, errors, ratios. Needs
hey (Debian: apt-get install hey) and Flask.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "examples" / "bert_intent"
PATH = "/predict?query=music"
READY_SECONDS = 180.0
LOAD_SECONDS = 900.0
"""After which a load is broken off: a server this slow has lost anyway."""
WARM_UP = 500


@dataclass(frozen=True)
class Load:
    """What hey saw: requests per second, seconds at the 50th and 99th percentile, and what was not a 200."""

    throughput: float
    p50: float
    p99: float
    errors: int


def parse(output: str, requests: int) -> Load:
    """hey's report. A response that is neither 200 nor listed as an error counts as an error, too."""
    found = {
        name: re.search(pattern, output)
        for name, pattern in {
            "throughput": r"Requests/sec:\s+([\d.]+)",
            "p50": r"50%+ in ([\d.]+) secs",
            "p99": r"99%+ in ([\d.]+) secs",
        }.items()
    }
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise SystemExit(f"hey's report lacks {', '.join(missing)}:\n{output}")
    good = re.search(r"\[200\]\s+(\d+) responses", output)
    figures = {name: float(match.group(1)) for name, match in found.items() if match is not None}
    return Load(**figures, errors=requests - (int(good.group(1)) if good else 0))


def measure(port: int, requests: int, clients: int) -> Load:
    """One load. hey sends whole rounds, so ``requests`` is rounded down to a multiple of ``clients``."""
    requests -= requests % clients
    url = f"http://127.0.0.1:{port}{PATH}"
    # -t 0: a request that waits is slow, and must be seen as slow rather than as gone.
    command = ["hey", "-n", str(requests), "-c", str(clients), "-t", "0", url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS, check=True)
    return parse(result.stdout, requests)


@contextlib.contextmanager
def server(name: str, command: list[str], port: int) -> Iterator[None]:
    """Run ``command`` until the block ends, from when its /readyz answers 200."""
    environ = {
        **os.environ, "PYTHONPATH": f"{EXAMPLE}:{REPOSITORY}", "HF_HUB_OFFLINE": "1", "GPUSCALE_GPU": "simulated",
        "GPUSCALE_PORT": str(free_port()), "GPUSCALE_ADDRESS": "127.0.0.1",
    }  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{name} did not get ready:\n{log.read().decode(errors='replace')}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)


def ready(port: int) -> bool:
    """Whether /readyz answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Measure both, print the table. Exit status 1 when something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--model", default=str(EXAMPLE / "model"))
    options = parser.parse_args()
    if shutil.which("hey") is None:
        print("hey is not installed; get it with: apt-get install hey", file=sys.stderr)
        return 1
    ports = free_port(), free_port()
    commands = {
        "service": ([sys.executable, "-m", "bert_intent", "--model", options.model, "--port", str(ports[0]),
                     "--drain-seconds", "0"], ports[0]),
        "flask": ([sys.executable, str(REPOSITORY / "benchmarks" / "flask_baseline.py"), "--model", options.model,
                   "--port", str(ports[1])], ports[1]),
    }  # fmt: skip
    loads: dict[str, Load] = {}
    for name, (command, port) in commands.items():
        with server(name, command, port):
            measure(port, max(WARM_UP, options.clients), options.clients)
            loads[name] = measure(port, options.requests, options.clients)
    service, flask = loads["service"], loads["flask"]
    ratios = {"throughput": service.throughput / flask.throughput, "p99": service.p99 / flask.p99}
    if options.json:
        print(json.dumps({**{name: asdict(load) for name, load in loads.items()}, "ratio": ratios}))
        return 0
    print(f"hey -n {options.requests} -c {options.clients}   {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7}")
    for name, load in loads.items():
        row = f"{load.throughput:8.1f} {load.p50 * 1000:8.0f} {load.p99 * 1000:8.0f} {load.errors:7d}"
        print(f"{name:<{20 + len(str(options.requests)) - 5}} {row}")
    print(f"service / flask: {ratios['throughput']:.1f} x the throughput, {ratios['p99']:.2f} x the p99")
    return 0


if __name__ == "__main__":
    sys.exit(main())
