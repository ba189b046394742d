"""A process that has every call of the driver fail with every code in turn: ``python fuzz.py STATE FUNCTION…``.

It runs the sampler's cycles itself, one after the other, so that each failure is met for certain. Prints a line of
JSON: how many failures were tried, how many readings failed, and what was published that is not true.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gpuscale.gpu import nvml_device, nvml_gpm
from gpuscale.gpu.reading import GpuReading
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import create_source
from tests.gpu.truths import CODES, untrue

WELL_AGAIN = 10.0
"""Seconds; GPM needs two samples of an instance that are a tenth of one apart."""


class Fuzz:
    """A sampler without a thread, on a driver whose state file is rewritten."""

    def __init__(self, state: Path) -> None:
        self._state, self._healthy = state, state.read_text()
        self.sampler = Sampler(create_source("nvml"), interval=0.0, retry=(0.0, 0.0), window=1.0, staleness=math.inf)

    def order(self, line: str = "") -> None:
        """One fault, or none."""
        fresh = self._state.with_suffix(".fuzz")
        fresh.write_text(self._healthy + line)
        os.replace(fresh, self._state)

    def cycle(self) -> tuple[GpuReading, ...]:
        """What is published after one more round of the sampler's thread. Raises what would crash it."""
        self.sampler._cycle()
        return self.sampler.snapshot().gpus

    def until_well(self) -> bool:
        """Whether all of it comes back once the fault is over."""
        self.order()
        end = time.monotonic() + WELL_AGAIN
        while time.monotonic() < end:
            gpus = self.cycle()
            known = [(gpu.memory_used_bytes, gpu.temperature_celsius, gpu.utilization_method) for gpu in gpus if gpu.up]
            if len(known) == 3 and all(map(all, known)):
                return True
            time.sleep(0.002)
        return False


def faults(fuzz: Fuzz, functions: list[str]) -> Iterator[str]:
    """Each is tried; yields what was wrong."""
    for function in functions:
        for number, code in enumerate(CODES):
            fuzz.order(f"error.{function} {code} id={number + 1}\n")
            for _ in range(2):
                for gpu in fuzz.cycle():
                    yield from (f"{function} {code}: {wrong}" for wrong in untrue(gpu))
        if not fuzz.until_well():
            yield f"{function}: it did not come back"


def main() -> None:
    nvml_device.ASK_AGAIN = 0.0
    nvml_gpm.SHORTEST = 0.0
    fuzz = Fuzz(Path(sys.argv[1]))
    wrong = [] if fuzz.until_well() else ["it did not begin"]
    wrong += faults(fuzz, sys.argv[2:])
    shot = fuzz.sampler.snapshot()
    counted = sum(sum(errors.values()) for errors in (shot.errors, *(gpu.errors for gpu in shot.gpus)))
    print(json.dumps({"tried": len(CODES) * len(sys.argv[2:]), "counted": counted, "wrong": wrong[:20]}))


if __name__ == "__main__":
    main()
