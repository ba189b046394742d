"""The service as a process of its own: readiness, SIGTERM under load, workers, a wrong model."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.middleware.servers import free_port

from .conftest import EXAMPLE, REPOSITORY, eventually


class Running:
    """A service process on loopback."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, metrics_port: int, log: Path) -> None:
        self.process, self.port, self.metrics_port, self.log = process, port, metrics_port, log

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        """Status and body; status 0 when the connection fails."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def wait_ready(self) -> None:
        eventually(lambda: self.get("/readyz")[0] == 200 or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.log.read_text()

    def sample(self, name: str) -> float:
        """The sum of a series over its labels on the metrics port."""
        page = self.get("/metrics", self.metrics_port)[1].decode()
        return sum(float(line.split()[-1]) for line in page.splitlines() if re.match(rf"{name}[ {{]", line))


FAKE_MODEL = (
    "import sys; from tests.example.conftest import FakeClassifier; from bert_intent import __main__, model\n"
    "model.load = lambda settings, threads: FakeClassifier()\n"
    "sys.exit(__main__.main())"
)
"""An entry point that loads no torch, for what is about the process and not about the model."""


@contextmanager
def service(
    tmp_path: Path, *flags: str, entry: tuple[str, ...] = ("-m", "bert_intent"), **environ: str
) -> Iterator[Running]:
    """Start the service; at the end it is killed if the test has not ended it."""
    port, metrics_port = free_port(), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BERT_", "GPUSCALE_"))}
    settings = {
        "PYTHONPATH": f"{EXAMPLE}:{REPOSITORY}", "BERT_PORT": str(port), "BERT_DEVICE": "cpu", "BERT_THREADS": "1",
        "GPUSCALE_PORT": str(metrics_port), "GPUSCALE_ADDRESS": "127.0.0.1", "GPUSCALE_GPU": "none",
        "GPUSCALE_RUN_DIR": str(tmp_path / "run"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *entry, *flags],
            env={**kept, **settings, **environ}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield Running(process, port, metrics_port, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(30)


def test_sigterm_under_load_fails_no_request(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Clients keep coming until a probe has seen "not ready" and a moment more, as a Service's endpoints do."""
    flags = ("--drain-seconds", "2", "--grace-seconds", "20")
    with service(tmp_path, *flags, BERT_MODEL=str(tiny_checkpoint)) as running:
        running.wait_ready()
        assert running.get("/predict?query=music") == (200, b"PlayMusic")
        stop, outcomes, lock = threading.Event(), Counter[int](), threading.Lock()

        def load() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            mine: Counter[int] = Counter()
            for _ in range(5000):
                if stop.is_set():
                    break
                try:
                    connection.request("GET", "/predict?query=play+the+music")
                    answer = connection.getresponse()
                    answer.read()
                    mine[answer.status] += 1
                except OSError:
                    mine[0] += 1
                    connection.close()
            connection.close()
            with lock:
                outcomes.update(mine)

        clients = [threading.Thread(target=load) for _ in range(12)]
        for client in clients:
            client.start()
        time.sleep(1)
        sent = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: running.get("/readyz")[0] == 503, 10)
        time.sleep(0.5)
        assert running.get("/predict?query=music")[0] == 200  # not ready, and yet it answers
        stop.set()
        for client in clients:
            client.join(30)
        assert running.process.wait(30) == 0
        assert time.monotonic() - sent < 20
        assert set(outcomes) == {200}, outcomes
        assert outcomes[200] > 24


def test_what_is_in_flight_at_the_end_is_finished(tmp_path: Path) -> None:
    """Without any draining: the port closes at once, and a request that was sent before is answered."""
    with service(tmp_path, "--drain-seconds", "0", entry=("-c", FAKE_MODEL)) as running:
        running.wait_ready()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        body = b'{"queries": ["' + b'", "'.join([b"play the music " * 30] * 64) + b'"]}'
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:100])
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert connection.sock is not None
        connection.sock.sendall(body[100:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read().count(b"PlayMusic") == 64 * 2
        assert running.process.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    with service(tmp_path, BERT_MODEL=str(tmp_path / "nothing")) as running:
        assert running.process.wait(120) == 1
        assert f"BERT_MODEL={tmp_path}/nothing is no folder" in running.log.read_text()


def test_sigterm_while_the_model_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with service(tmp_path, "--drain-seconds", "0", BERT_MODEL=str(tiny_checkpoint)) as running:
        eventually(lambda: running.get("/healthz")[0] == 200, 120)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.log.read_text()


def test_workers_publish_one_sum_and_drain(tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--workers", "2", "--drain-seconds", "0.5")
    with service(tmp_path, *flags, BERT_MODEL=str(tiny_checkpoint)) as running:
        running.wait_ready()
        # Each connection goes to whichever worker takes it; for a while one may still be loading (503).
        statuses = Counter(running.get("/predict?query=music")[0] for _ in range(60))
        assert set(statuses) <= {200, 503}
        counted: Callable[[], bool] = lambda: running.sample("gpuscale_requests_total") == 60  # noqa: E731
        eventually(counted, 20)
        assert running.sample("bert_intent_batch_size_sum") == statuses[200]
        assert running.sample("bert_intent_inference_seconds_count") == statuses[200]
        assert running.sample("bert_intent_queue_depth") == 0
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.log.read_text()


@pytest.mark.parametrize("variable", ["GPUSCALE_BUCKETS", "BERT_QUEUE_LIMIT"])
def test_a_wrong_option_is_wrong_usage(tmp_path: Path, variable: str) -> None:
    wrong: Any = {variable: "wrong"}
    with service(tmp_path, **wrong) as running:
        assert running.process.wait(120) == 2
        assert variable in running.log.read_text()
