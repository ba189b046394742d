"""``Stub``: what a test drives the library with, while the processes that loaded it run."""

import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build import SONAME, build
from .load import Load, constant

Value = str | float | int | Sequence[float] | None
_COUNTERS = ("energy", "pcie.tx", "pcie.rx", "nvlink.tx", "nvlink.rx")


@dataclass(frozen=True)
class Call:
    """One call of an NVML function, from the log; ``result`` is None while it has not come back."""

    time: float
    pid: int
    tid: int
    function: str
    result: int | None


def _text(value: Value) -> str:
    """``None`` is the driver's "not supported"."""
    if value is None:
        return "n/a"
    if isinstance(value, str):
        return value
    return " ".join(map(_text, value)) if isinstance(value, Sequence) else repr(value)


class Stub:
    """The state of one stubbed driver: a folder with the library, the state file and the log of calls.

    Every method that changes something has replaced the file when it returns; inside ``with stub.batch():``
    it is replaced once, at the end. Devices are named by their number, a MIG instance by ``"0.mig.1"``.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.library = library
        self.state_path = folder / "state"
        self.log_path = folder / "calls.log"
        self.library_folder = folder / "lib"
        self._values: dict[str, str] = {"gpus": "0"}
        self._loads: dict[str, list[tuple[float, Load]]] = {}
        self._processes: dict[str, list[str]] = {}
        self._orders: dict[int, str] = {}
        self._ids = itertools.count(int(time.monotonic_ns() / 1000) % 1_000_000_000 + 1)
        self._lock = threading.RLock()
        self._batches = 0

    @classmethod
    def create(cls, folder: Path, gpus: int = 1, **settings: Value) -> "Stub":
        """A driver with idle Hopper GPUs, UUIDs ``GPU-00000000-0000-4000-8000-00000000000N``.

        ``settings`` holds for each of them; a dot in a key is written ``__`` (``memory__total=80 << 30``).
        """
        folder.mkdir(parents=True, exist_ok=True)
        stub = cls(folder, build())
        stub.library_folder.mkdir(exist_ok=True)
        stub.install()
        with stub.batch():
            stub.set("gpus", gpus)
            for index in range(gpus):
                stub.set(f"gpu.{index}.energy", 0)
                for key, value in settings.items():
                    stub.set(f"gpu.{index}.{key.replace('__', '.')}", value)
        return stub

    # The library itself

    def install(self) -> None:
        """Put the library where the processes look: the driver has arrived."""
        link = self.library_folder / SONAME
        if not link.exists():
            link.symlink_to(self.library)

    def uninstall(self) -> None:
        """Take it away: a process that has not loaded it yet gets LIBRARY_NOT_FOUND."""
        (self.library_folder / SONAME).unlink(missing_ok=True)

    def env(self, base: Mapping[str, str] | None = None, *, log: bool = True, **more: str) -> dict[str, str]:
        """The environment for a process that shall load the stub."""
        environment = dict(os.environ if base is None else base)
        folders = [str(self.library_folder), environment.get("LD_LIBRARY_PATH")]
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
        environment["NVML_STUB_STATE"] = str(self.state_path)
        if log:
            environment["NVML_STUB_LOG"] = str(self.log_path)
        environment.update(more)
        return environment

    def spawn(self, code: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        """Start Python with ``code`` on the stub; stdout is piped."""
        settings: dict[str, Any] = {"env": self.env(), "stdout": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], **settings)

    def run(self, code: str, *arguments: str, timeout: float = 60) -> str:
        """Run Python with ``code`` on the stub and return its stdout; a failure raises with its stderr."""
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=self.env(), capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
        if "nvml_stub:" in done.stderr:  # a key that the library does not know
            raise AssertionError(done.stderr)
        return done.stdout

    # Values

    def set(self, key: str, value: Value) -> None:
        """Set one key of the state file. ``None`` means "not supported" for a number.

        Three kinds are looked after: ``util`` is the load from now on, and what was before stays true;
        ``energy`` (mJ), ``pcie.*`` and ``nvlink.*`` (bytes, bytes/s) count on from now; a new ``power``
        leaves the energy so far alone.
        """
        with self._lock, self._writing():
            device, _, name = key.removeprefix("gpu.").rpartition(".")
            if key.startswith("gpu.") and name == "util" and isinstance(value, (int, float)):
                self.load(device, constant(value))
            elif key.startswith("gpu.") and key.endswith((".power", ".power.busy")):
                device = key.removeprefix("gpu.").removesuffix(".busy").removesuffix(".power")
                self._bring_energy_forward(device)
                self._values[key] = _text(value)
            elif key.endswith(_COUNTERS) and value is not None:
                self._set_counter(key, *([value] if isinstance(value, (int, float)) else map(float, value)))
            else:
                self._values[key] = _text(value)

    def unset(self, key: str) -> None:
        """Back to the default."""
        with self._lock, self._writing():
            self._values.pop(key, None)

    def _set_counter(self, key: str, offset: float, *rate: float) -> None:
        if not key.endswith("energy"):
            rate = rate or (0.0,)
        self._values[key] = _text([offset, *rate, time.monotonic()])

    def _bring_energy_forward(self, device: str) -> None:
        key = f"gpu.{device}.energy"
        if self._values.get(key, "n/a") != "n/a":
            self._set_counter(key, self.energy_millijoules(device))

    # Load and its truth

    def load(self, device: int | str, load: Load, at: float | None = None) -> None:
        """Drive ``device`` with ``load`` from ``at`` (CLOCK_MONOTONIC; now) on, until the next one."""
        with self._lock, self._writing():
            history = self._loads.setdefault(str(device), [])
            begin = time.monotonic() if at is None else at
            if history and begin < history[-1][0]:
                raise ValueError("loads must be given in the order of time")
            history.append((begin, load))

    def busy_seconds(self, device: int | str, begin: float, end: float) -> float:
        """The truth: seconds at full load that were driven between two times of CLOCK_MONOTONIC."""
        with self._lock:
            history = list(self._loads.get(str(device), []))
        total = 0.0
        ends = [since for since, _ in history[1:]] + [math.inf]
        for (since, load), until in zip(history, ends, strict=True):
            first, last = max(since, begin), min(until, end)
            if last > first:
                total += load.integral(first - since, last - since)
        return total

    def energy_millijoules(self, device: int | str, at: float | None = None) -> float:
        """The truth of the energy counter at a time of CLOCK_MONOTONIC (now)."""
        now = time.monotonic() if at is None else at
        offset, since = (float(part) for part in self._values[f"gpu.{device}.energy"].split())
        idle = float(self._values.get(f"gpu.{device}.power", "70000"))
        busy = self._values.get(f"gpu.{device}.power.busy", "n/a")
        energy = offset + idle * (now - since)
        if busy != "n/a":
            energy += (float(busy) - idle) * self.busy_seconds(device, since, now)
        return energy

    # Processes and MIG

    def processes(self, device: int | str, *lines: tuple[int | str, int | None] | str) -> None:
        """Replace a device's processes: ``(pid or "self", bytes or None)``, or a line ``PID BYTES sm=30``."""
        with self._lock, self._writing():
            self._processes[str(device)] = [
                line if isinstance(line, str) else f"{line[0]} {_text(line[1])}" for line in lines
            ]

    def mig(self, gpu: int, *instances: Mapping[str, Value]) -> list[str]:
        """Put ``gpu`` into MIG mode with instances of these keys (``uuid, profile, …``); their names."""
        names = [f"{gpu}.mig.{number}" for number in range(len(instances))]
        with self.batch():
            self.set(f"gpu.{gpu}.mig.mode", 1)
            for name, instance in zip(names, instances, strict=True):
                self.set(f"gpu.{name}.memory.total", 10 << 30)
                for key, value in instance.items():
                    self.set(f"gpu.{name}.{key}", value)
        return names

    # Faults

    def fail(
        self,
        function: str,
        code: str | int,
        *,
        gpu: int | None = None,
        times: int | None = None,
        seconds: float | None = None,
        probability: float | None = None,
        seed: int = 0,
    ) -> int:
        """Order an error: for ever, so many ``times`` (in each process), for ``seconds``, or by chance.

        ``function`` without a version means all its versions, ``nvmlInit`` all its forms, ``*`` everything.
        Returns a number for ``release``.
        """
        options = {"gpu": gpu, "times": times, "p": probability, "seed": seed or None}
        if seconds is not None:
            options["until"] = time.monotonic() + seconds
        return self._order(f"error.{function} {code}", options)

    def hang(self, function: str, seconds: float | None = None, *, gpu: int | None = None) -> int:
        """Let calls of ``function`` hang, for ``seconds`` or until ``release``."""
        return self._order(f"hang.{function} {'forever' if seconds is None else seconds}", {"gpu": gpu})

    def release(self, *orders: int) -> None:
        """Take back these orders of ``fail`` and ``hang``, or all of them."""
        with self._lock, self._writing():
            for order in orders or list(self._orders):
                self._orders.pop(order, None)

    def _order(self, line: str, options: Mapping[str, Value]) -> int:
        with self._lock, self._writing():
            order = next(self._ids)
            given = [f"{key}={_text(value)}" for key, value in options.items() if value is not None]
            self._orders[order] = " ".join([line, *given, f"id={order}"])
            return order

    def forbid(self, gpu: int, code: str = "NO_PERMISSION") -> None:
        """Count the GPU, and refuse its handle; ``SUCCESS`` allows it again."""
        self.set(f"gpu.{gpu}.handle_error", code)

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""
        self.set(f"gpu.{gpu}.lost", 1)

    def find(self, gpu: int) -> None:
        """And is back."""
        self.set(f"gpu.{gpu}.lost", 0)

    # The file and the log

    @contextmanager
    def batch(self) -> Iterator["Stub"]:
        """Write the file once for all the changes inside."""
        with self._lock, self._writing():
            yield self

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if self._batches == 0:
                self._write()

    def _write(self) -> None:
        lines = [f"{key} {value}" for key, value in self._values.items()]
        for device, history in self._loads.items():
            lines += [f"gpu.{device}.load {since!r} {load.line()}" for since, load in history]
        for device, processes in self._processes.items():
            lines += [f"gpu.{device}.process {process}" for process in processes]
        lines += self._orders.values()
        unfinished = self.state_path.with_suffix(".new")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.rename(self.state_path)

    def calls(self, function: str | None = None, *, since: float = 0) -> list[Call]:
        """The calls logged so far, in the order in which they began."""
        calls: list[Call] = []
        open_calls: dict[tuple[int, int], int] = {}
        text = self.log_path.read_text() if self.log_path.exists() else ""
        for line in text.splitlines():
            at, pid, tid, name, *result = line.split()
            thread = (int(pid), int(tid))
            if result and thread in open_calls:
                index = open_calls.pop(thread)
                calls[index] = Call(calls[index].time, *thread, name, int(result[0]))
            elif not result:
                open_calls[thread] = len(calls)
                calls.append(Call(float(at), *thread, name, None))
        return [call for call in calls if call.time >= since and function in (None, call.function)]
