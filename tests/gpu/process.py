"""Drives ``runner.py`` from a test; every wait has a bound."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from tests.nvml_stub import Stub

RUNNER = Path(__file__).parent / "runner.py"
ROOT = RUNNER.parents[2]
FAST = {"interval": 0.2, "staleness": 1.0, "window": 2.0, "retry": [0.1, 0.5], "lost_after": 1.0}
"""The sampler's options for faults: everything happens sooner."""

Snapshot = dict[str, Any]


class Process:
    """A process that samples the stub's driver."""

    def __init__(self, stub: Stub, **options: Any) -> None:
        environment = stub.env(log=options.pop("log", True), PYTHONPATH=str(ROOT))
        environment.pop("NVIDIA_VISIBLE_DEVICES", None)
        environment.update(options.pop("environ", {}))
        settings = {**FAST, **options}
        self._counters: dict[tuple[str, str], float] = {}
        self.stderr = stub.folder / "stderr"
        self._popen = subprocess.Popen(
            [sys.executable, str(RUNNER), json.dumps(settings)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.stderr, "a"),  # noqa: SIM115
            text=True,
            bufsize=1,
        )

    def ask(self, command: str, timeout: float = 10) -> Any:
        """The answer to one command."""
        stdin, stdout = cast("IO[str]", self._popen.stdin), cast("IO[str]", self._popen.stdout)
        stdin.write(command + "\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], timeout)
        assert ready, f"no answer to {command} within {timeout} s: {self.log()}"
        line = stdout.readline()
        assert line, f"the process ended: {self.log()}"
        return json.loads(line)

    def snapshot(self) -> Snapshot:
        """The sampler's snapshot as JSON; it must not have blocked, and no counter may have gone back."""
        shot = self.ask("snapshot")
        assert shot["took"] < 0.5
        for gpu in shot["gpus"]:
            for name in ("busy_seconds", "observed_seconds", "energy_joules"):
                if gpu[name] is not None:
                    key = (gpu["identity"]["uuid"], name)
                    assert gpu[name] >= self._counters.get(key, 0.0)
                    self._counters[key] = gpu[name]
        return cast(Snapshot, shot)

    def until(self, holds: Callable[[Snapshot], object], timeout: float = 15) -> Snapshot:
        """Polls snapshots until one fits."""
        end = time.monotonic() + timeout
        while True:
            shot = self.snapshot()
            if holds(shot):
                return shot
            assert time.monotonic() < end, f"not within {timeout} s; last: {shot}\n{self.log()}"
            time.sleep(0.03)

    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self.stderr.read_text()

    def terminate(self) -> float:
        """SIGTERM; the seconds until it was gone."""
        begin = time.monotonic()
        self._popen.terminate()
        self._popen.wait(10)
        return time.monotonic() - begin

    def close(self) -> None:
        """Ends it for certain."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(10)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def up(shot: Snapshot) -> bool:
    """Whether every GPU is up and there is one."""
    return bool(shot["gpus"]) and all(gpu["up"] for gpu in shot["gpus"])
