"""Milliseconds of a scrape, also while the event loop is blocked; seconds until a killed leader's place is taken.

    python -m benchmarks.bench_prefork [--json] [--kills 10]

One uvicorn process whose handler blocks the loop; gunicorn with four sync workers, of which the one that serves the
endpoint gets SIGKILL: the takeover lasts until the next page is there. All on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.middleware.servers import SERVERS, UVICORN, Server, serve, wait_for

SCRAPES = 200
BLOCKED_SECONDS = 5


def scrape_seconds(server: Server, scrapes: int = SCRAPES) -> list[float]:
    """Of so many pages, the shortest first."""
    taken = []
    for _ in range(scrapes):
        start = time.perf_counter()
        server.page()
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def blocked_scrape_seconds(server: Server) -> list[float]:
    """While a handler sleeps on the event loop."""
    blocked = threading.Thread(target=server.get, args=(f"/busy/{BLOCKED_SECONDS}",))
    blocked.start()
    time.sleep(0.3)
    taken = scrape_seconds(server, SCRAPES // 2)
    if not blocked.is_alive():
        raise SystemExit("the loop was free again before the scrapes ended; the machine is too busy")
    blocked.join()
    return taken


def takeover_seconds(server: Server) -> float:
    """From the kill of the worker that leads to the first page of the next one."""
    wait_for("four workers", lambda: len(server.workers()) == 4)
    (leader,) = server.endpoint_owners()
    start = time.monotonic()
    os.kill(leader, signal.SIGKILL)
    wait_for("the next leader", lambda: server.endpoint_owners() not in ([], [leader]))
    wait_for("its page", server.page)
    return time.monotonic() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(UVICORN, Path(folder)) as server:
        blocked = blocked_scrape_seconds(server)
    with tempfile.TemporaryDirectory() as folder, serve(SERVERS["gunicorn-sync"], Path(folder)) as server:
        scrapes = scrape_seconds(server)
        takeovers = [takeover_seconds(server) for _ in range(options.kills)]
    figures = {
        "blocked_scrape_ms_median": statistics.median(blocked) * 1000,
        "blocked_scrape_ms_longest": blocked[-1] * 1000,
        "scrape_ms_median": statistics.median(scrapes) * 1000,
        "scrape_ms_p99": scrapes[int(0.99 * len(scrapes))] * 1000,
        "takeover_s_median": statistics.median(takeovers),
        "takeover_s_longest": max(takeovers),
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{len(blocked)} scrapes while the loop is blocked, ms: median {figures['blocked_scrape_ms_median']:.1f}, "
          f"longest {figures['blocked_scrape_ms_longest']:.1f}")  # fmt: skip
    print(f"{SCRAPES} scrapes of 4 workers, ms: median {figures['scrape_ms_median']:.1f}, "
          f"p99 {figures['scrape_ms_p99']:.1f}")  # fmt: skip
    print(f"{options.kills} takeovers after SIGKILL of the leader, s: median {figures['takeover_s_median']:.2f}, "
          f"longest {figures['takeover_s_longest']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
