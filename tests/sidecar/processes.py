"""gpuscale as a process of its own, on the stubbed driver, for tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.nvml_stub import Stub

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


ISOLATED = """
import sys
from gpuscale.gpu import other_containers
other_containers.decide = lambda proc, lacks: lacks.append("the test hides this machine's other containers")
from gpuscale.cli import main
sys.exit(main())
"""
"""A machine on which the tests run may have containers with GPUs, whose processes the sidecar would find."""


class Running:
    """A running ``gpuscale sidecar`` or ``gpuscale run``."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.port, self.log_path = process, port, log

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str = "/metrics") -> tuple[int, str]:
        """Status and body; status 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def series(self) -> dict[str, float]:
        """Sample (as it is written, without the labels name and minor_number) → value."""
        found = {}
        for line in self.get()[1].splitlines():
            if not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                sample = re.sub(r'(minor_number|name)="[^"]*",?', "", sample)
                found[sample.replace(",}", "}")] = float(value)
        return found

    def wait_for(self, text: str, path: str = "/metrics", status: int = 200, seconds: float = 20) -> str:
        """Until a page holds ``text``."""
        end = time.monotonic() + seconds
        while True:
            got, body = self.get(path)
            if got == status and text in body:
                return body
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.log}"
            assert time.monotonic() < end, f"{path} said {got} {body[-2000:]}\n{self.log}"
            time.sleep(0.02)

    def end(self, number: int = 15) -> tuple[int, float]:
        """Send a signal; exit status and the seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - begun


@contextmanager
def gpuscale(
    *arguments: str,
    folder: Path,
    stub: Stub | None = None,
    environ: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[Running]:
    """Start it with a free metrics port; killed at the end if it is still there."""
    port = port or free_port()
    base = {name: value for name, value in os.environ.items() if not name.startswith(("GPUSCALE", "NVIDIA"))}
    base["PYTHONPATH"] = str(ROOT)
    base["GPUSCALE_PORT"] = str(port)
    base["GPUSCALE_ADDRESS"] = "127.0.0.1"
    base.update(environ or {})
    log = folder / f"log-{port}"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", ISOLATED, *arguments],
            env=stub.env(base) if stub else base,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield Running(process, port, log)
    finally:
        with suppress(ProcessLookupError):  # with the command of gpuscale run, which outlives a SIGKILL of it
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
