"""The process that keeps a GPU busy: ``python -m tests.gpu_hardware.load cuda``; told what to do in lines of JSON.

First it says ``{"uuid", "device", "torch", "reserved"}``, or ``{"unavailable": reason}`` and ends. Then, a line each:

- ``{"drive": {begin, end, offset, length, period}}``, seconds of CLOCK_MONOTONIC, is answered at the end with
  ``{"intervals", "device_seconds", "reserved"}``;
- ``{"allocate": bytes}`` and ``{"release": true}`` are answered with ``{"reserved"}``, in bytes.

It ends with its standard input. ``host`` instead of ``cuda`` keeps a CPU busy, to try the rest without a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

from tests.gpu_hardware.plan import Engine, Slot, bursts, drive

QUEUED = 3
"""Kernels in flight: enough that the GPU never waits for Python, few enough that a burst ends on time."""
SHORTEST_KERNEL = 0.0005
"""Seconds: longer than it takes to launch the next."""
SIZES = (1024, 2048, 4096, 8192)
"""Of the square matrices."""


class UnavailableError(Exception):
    """There is nothing to keep busy; the message says why."""


class CudaEngine:
    """Matrix products on torch's current GPU, timed by CUDA events."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            raise UnavailableError("torch is not installed") from None
        if not torch.cuda.is_available():
            raise UnavailableError(f"torch {torch.__version__} sees no CUDA GPU")
        self._torch = torch
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._queued: deque[Any] = deque()
        self._held: list[Any] = []
        for size in SIZES:
            self._left = torch.randn(size, size, dtype=torch.float16, device="cuda")
            self._product = torch.empty_like(self._left)
            if self._kernel_seconds() >= SHORTEST_KERNEL:
                break
        torch.cuda.synchronize()

    def _kernel_seconds(self, times: int = 20) -> float:
        for count in (3, times):  # the first ones load the library
            self.begin()
            for _ in range(count):
                self.launch()
            seconds = self.finish()
        return seconds / times

    def begin(self) -> None:
        self._queued.clear()
        self._start.record()

    def launch(self) -> None:
        self._torch.matmul(self._left, self._left, out=self._product)
        done = self._torch.cuda.Event()
        done.record()
        self._queued.append(done)
        if len(self._queued) > QUEUED:
            self._queued.popleft().synchronize()

    def finish(self) -> float:
        self._end.record()
        self._torch.cuda.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000

    def allocate(self, size: int) -> None:
        self._held.append(self._torch.empty(size, dtype=self._torch.uint8, device="cuda"))

    def release(self) -> None:
        self._held.clear()
        self._torch.cuda.empty_cache()

    @property
    def reserved(self) -> int:
        return int(self._torch.cuda.memory_reserved())

    def about(self) -> dict[str, Any]:
        traits = self._torch.cuda.get_device_properties(self._torch.cuda.current_device())
        return {"uuid": str(getattr(traits, "uuid", "")), "device": traits.name, "torch": self._torch.__version__}


class HostEngine:
    """A CPU instead."""

    def __init__(self) -> None:
        self._began = 0.0
        self.reserved = 0

    def begin(self) -> None:
        self._began = time.monotonic()

    def launch(self) -> None:
        sum(range(10_000))

    def finish(self) -> float:
        return time.monotonic() - self._began

    def allocate(self, size: int) -> None:
        self.reserved += size

    def release(self) -> None:
        self.reserved = 0

    def about(self) -> dict[str, Any]:
        return {"uuid": "", "device": "CPU", "torch": ""}


def driven(engine: Engine, begin: float, end: float, offset: float, length: float, period: float) -> dict[str, Any]:
    """The answer to ``drive``."""
    intervals, seconds = drive(bursts(begin, end, Slot(offset, length), period), engine)
    return {"intervals": intervals, "device_seconds": seconds}


def obey(engine: CudaEngine | HostEngine, order: dict[str, Any]) -> dict[str, Any]:
    """The answer to one line."""
    answer: dict[str, Any] = {}
    if "drive" in order:
        answer = driven(engine, **order["drive"])
    elif "allocate" in order:
        engine.allocate(int(order["allocate"]))
    elif "release" in order:
        engine.release()
    else:
        raise ValueError(f"an order must be drive, allocate or release, not {sorted(order)}")
    return {**answer, "reserved": engine.reserved}


def main(kind: str) -> None:
    """Until standard input ends."""
    try:
        engine = CudaEngine() if kind == "cuda" else HostEngine()
    except UnavailableError as error:
        print(json.dumps({"unavailable": str(error)}), flush=True)
        return
    print(json.dumps({**engine.about(), "reserved": engine.reserved}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
