"""One measurement: children drive a planned load, the sampler reads it, both are compared."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gpuscale.gpu.reading import GpuReading
from gpuscale.gpu.sampler import Sampler
from tests.gpu_hardware.plan import PERIOD, Interval, area, busy_between, slots
from tests.gpu_hardware.table import LoadRow

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 120.0
"""Seconds in which torch must be loaded and the first kernels run."""
POWER_EVERY = 0.1


class Child(AbstractContextManager["Child"]):
    """A process of ``load.py``. Every answer is waited for with a bound; its errors are in ours."""

    def __init__(self, kind: str = "cuda") -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu_hardware.load", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.about = self.answer(START_LIMIT)
        except BaseException:
            self.close()
            raise

    @property
    def unavailable(self) -> str:
        """Why it can drive nothing; empty if it can."""
        return str(self.about.get("unavailable", ""))

    def tell(self, **order: Any) -> None:
        """Gives an order and does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = 30.0) -> dict[str, Any]:
        """The next answer. Raises RuntimeError with the child's last words if none comes."""
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            line = None
        if line is None:
            self._errors.seek(0)
            said = self._errors.read()[-2000:]
            raise RuntimeError(f"the load's process gave no answer (status {self._process.poll()}): {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends it, by force if it does not within 10 s."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        self._process.stdout.close()
        self._errors.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)


def find(sampler: Sampler, uuid: str) -> GpuReading | None:
    """The reading of the GPU with torch's ``uuid`` (which lacks NVML's prefix); the only one if torch has none."""
    gpus = sampler.snapshot().gpus
    same = [gpu for gpu in gpus if uuid and gpu.identity.uuid.endswith(uuid)]
    if same:
        return same[0]
    return gpus[0] if len(gpus) == 1 else None


def fresh(sampler: Sampler, uuid: str, timeout: float = 15.0) -> tuple[float, GpuReading]:
    """The next reading and when it came: the moments at which counters may be compared with the clock."""
    limit = time.monotonic() + timeout
    before: float | None = None
    while (now := time.monotonic()) < limit:
        gpu = find(sampler, uuid)
        if gpu is not None and gpu.up and gpu.sample_age_seconds is not None:
            if before is not None and gpu.sample_age_seconds < before:
                return now, gpu
            before = gpu.sample_age_seconds
        time.sleep(0.005)
    why = sampler.snapshot().why_empty
    raise RuntimeError(f"no fresh reading of the GPU {uuid} within {timeout:.0f} s: {why or 'its readings are stale'}")


def sampler_cpu_seconds() -> float:
    """CPU seconds of the sampler's thread so far."""
    thread = next(thread for thread in threading.enumerate() if thread.name == "gpuscale-gpu")
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def watch(until: float, watts: Callable[[], float | None]) -> list[tuple[float, float]]:
    """(time, watts) from now on, read beside the sampler; empty if the GPU does not tell."""
    points = []
    while (now := time.monotonic()) < until:
        if (value := watts()) is not None:
            points.append((now, value))
        time.sleep(max(0.0, min(POWER_EVERY, until - time.monotonic())))
    return points


def measure(
    sampler: Sampler,
    children: Sequence[Child],
    duty: float,
    watts: Callable[[], float | None],
    settle: float,
    window: float,
) -> LoadRow:
    """Drives ``duty`` percent by all ``children`` and reads for ``window`` seconds.

    ``settle`` seconds of the same load come first and must fill the sampler's own window. The load is steady and goes
    on after the end, so that the driver's lag (its newest sample is up to a second old) falls out of the difference.
    """
    uuid = str(children[0].about["uuid"])
    begin = time.monotonic() + 0.2
    end = begin + settle + window + 4 * sampler.interval + 1.0
    for child, slot in zip(children, slots(duty, len(children)), strict=True):
        child.tell(drive={"begin": begin, "end": end, "offset": slot.offset, "length": slot.length, "period": PERIOD})
    time.sleep(max(0.0, begin + settle - time.monotonic()))
    first_at, first = fresh(sampler, uuid)
    cost = sampler_cpu_seconds()
    points = watch(first_at + window - sampler.interval / 2, watts)
    last_at, last = fresh(sampler, uuid)
    cost = sampler_cpu_seconds() - cost
    answers = [child.answer(max(0.0, end - time.monotonic()) + 30.0) for child in children]
    on: list[Interval] = [(start, stop) for answer in answers for start, stop in answer["intervals"]]
    if last_at > end:
        raise RuntimeError("the last reading came after the load's end: this machine was too slow to measure")
    seconds = last_at - first_at
    return LoadRow(
        processes=len(children),
        asked=duty,
        seconds=seconds,
        true_percent=100 * busy_between(on, last_at - sampler.window, last_at) / sampler.window,
        duty_cycle=last.duty_cycle,
        true_busy=busy_between(on, first_at, last_at),
        busy=difference(first.busy_seconds, last.busy_seconds),
        observed=difference(first.observed_seconds, last.observed_seconds),
        host_seconds=sum(stop - start for start, stop in on),
        device_seconds=sum(answer["device_seconds"] for answer in answers),
        power_time=area(points, first_at, last_at),
        energy=difference(first.energy_joules, last.energy_joules),
        cost_percent=100 * cost / seconds,
        method=last.utilization_method or "absent",
    )


def difference(first: float | None, last: float | None) -> float | None:
    """None if either is not known."""
    return None if first is None or last is None else last - first
