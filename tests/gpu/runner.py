"""A process with a sampler on the stubbed driver: commands as lines on stdin, answers as JSON lines on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpuscale.gpu.ownership import decide
from gpuscale.gpu.reading import snapshot_to_json
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import GpuSource, create_source


class Counted:
    """A source that counts how often it was opened."""

    def __init__(self, source: GpuSource) -> None:
        self._source = source
        self.name = source.name
        self.devices = source.devices
        self.close = source.close
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        self._source.open()


def resources(source: Counted) -> dict[str, int]:
    """What must not grow: resident KiB, file descriptors, threads. And how often the driver was initialised."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return {
        "rss": int(lines["VmRSS"].split()[0]),
        "threads": int(lines["Threads"]),
        "fds": len(os.listdir("/proc/self/fd")),
        "opened": source.opened,
    }


def answer(value: Any) -> None:
    """One line."""
    print(json.dumps(value), flush=True)


def shot(sampler: Sampler) -> dict[str, Any]:
    """A snapshot with the time it is of and how long it took."""
    begin = time.monotonic()
    snapshot = sampler.snapshot()
    took = time.monotonic() - begin
    return {**snapshot_to_json(snapshot), "at": begin, "took": took, "num_devices": snapshot.num_devices}


def all_up(sampler: Sampler) -> bool:
    gpus = sampler.snapshot().gpus
    return bool(gpus) and all(gpu.up for gpu in gpus)


def in_child(options: dict[str, Any]) -> dict[str, Any]:
    """Forks, samples in the child until every GPU has been read, and returns the child's last snapshot."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            child = Sampler(create_source("nvml"), **options)
            child.start()
            until = time.monotonic() + 5
            while not all_up(child) and time.monotonic() < until:
                time.sleep(0.02)
            os.write(writer, json.dumps(shot(child)).encode())
            child.stop(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(pid, 0)
    return dict(json.loads(raw))


def made(name: str, sidecar: dict[str, str] | None) -> Counted:
    """The source; with a sidecar's ways to tell its GPUs where ``sidecar`` says ``root`` (of proc and dev)."""
    if sidecar is None:
        return Counted(create_source(name))
    root = Path(sidecar["root"])
    proc, dev, kubelet = root / "proc", root / "dev", root / "kubelet.sock"
    return Counted(create_source(name, lambda: decide(sidecar.get("gpus"), None, proc, dev, kubelet)))


def main() -> None:
    """Commands: snapshot, dump (what was handed to ``on_cycle`` last), resources, cpu, fork, stop, exec."""
    options = json.loads(sys.argv[1])
    logging.basicConfig(level=options.pop("log_level", "WARNING"))
    source = made(options.pop("source", "nvml"), options.pop("sidecar", None))
    started = options.pop("start", True)
    handed: list[dict[str, Any]] = [{}]
    sampler = Sampler(source, on_cycle=lambda dump: handed.__setitem__(0, dump), **options)
    if started:
        sampler.start()

    def terminated(*_: object) -> None:
        sampler.stop(1.0)
        sys.exit(0)

    signal.signal(signal.SIGTERM, terminated)
    for line in sys.stdin:
        command = line.strip()
        if command == "snapshot":
            answer(shot(sampler))
        elif command == "start":
            sampler.start()
            answer(True)
        elif command == "dump":
            answer(handed[0])
        elif command == "resources":
            answer(resources(source))
        elif command == "cpu":
            answer({"cpu": time.process_time(), "at": time.monotonic()})
        elif command == "fork":
            options.pop("restored", None)
            answer(in_child(options))
        elif command == "stop":
            begin = time.monotonic()
            ended = sampler.stop(1.0)
            answer({"ended": ended, "took": time.monotonic() - begin})
        elif command == "exec":
            os.execv(sys.executable, [sys.executable, "-c", "print('\"exec\"', flush=True)"])


if __name__ == "__main__":
    main()
