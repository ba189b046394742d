"""Eight GPUs of the stubbed driver under random loads, each with another quirk, scraped at random times.

The loads and the times are others in each run; a failure names their seed.
"""

from __future__ import annotations

import bisect
import math
import random
import time
from pathlib import Path

from tests.gpu.process import Process, up
from tests.nvml_stub import Load, Stub, steps

PERIOD = 1 / 6
QUIRKS: tuple[dict[str, float | str], ...] = (
    {}, {"duplicate": 0.3}, {"zero": 0.3}, {"unsorted": 1}, {"clock": "boot"}, {"type": "ull"}, {"type": "double"},
    {"idle_not_found": 1},
)  # fmt: skip


def some_load(seed: int, seconds: float) -> Load:
    chance = random.Random(seed)
    points, at = [], 0.0
    while at < seconds:
        points.append((at, chance.choice((0, 0, 100, 100, 35))))
        at += chance.uniform(0.05, 1.5)
    return steps(points)


def drive(stub: Stub, seed: int) -> None:
    for gpu, quirk in enumerate(QUIRKS):
        for name, value in quirk.items():
            stub.set(f"gpu.{gpu}.samples.{name}", value)
        stub.load(gpu, some_load(seed + gpu, 40.0), at=time.monotonic() - 1)


def aligned(stub: Stub, gpu: int, begin: float, end: float) -> list[float]:
    """The truth between the ends of the driver's periods; the next period may have ended before it was asked."""
    first, last = math.floor(begin / PERIOD), math.floor(end / PERIOD)
    return [stub.busy_seconds(gpu, (first + i) * PERIOD, (last + k) * PERIOD) for i in (0, 1) for k in (0, 1)]


def agrees(stub: Stub, gpu: int, begin: float, end: float, busy: float) -> bool:
    """Within 2 %, and the driver's resolution of half a percent of a sample."""
    return any(abs(busy - truth) <= 0.02 * truth + 0.005 * (end - begin) for truth in aligned(stub, gpu, begin, end))


def asked_at(asked: list[float], at: float) -> float:
    """When the driver was asked for what was read at ``at``: on a busy machine the sampler may wait in between.

    Of nvidia-ml-py's two calls the second brings the samples, the first tells how many there are.
    """
    return asked[min(bisect.bisect_left(asked, at - 1e-4) + 1, len(asked) - 1)]


def test_busy_seconds_are_the_truth_over_any_window(tmp_path: Path) -> None:
    stub = Stub.create(tmp_path, gpus=len(QUIRKS))
    seed = random.SystemRandom().randrange(1 << 30)
    drive(stub, seed)
    chance = random.Random(seed)
    with Process(stub, interval=0.5, staleness=10.0, window=10.0) as process:
        process.until(up)
        shots = []
        for _ in range(14):
            time.sleep(chance.uniform(0.1, 1.0))
            shots.append(process.snapshot())
    asked = [call.time for call in stub.calls("nvmlDeviceGetSamples")]
    compared = 0
    for first in range(len(shots)):
        for last in range(first + 1, len(shots)):
            for gpu in range(len(QUIRKS)):
                before, after = shots[first]["gpus"][gpu], shots[last]["gpus"][gpu]
                begin = shots[first]["at"] - before["sample_age_seconds"]
                end = shots[last]["at"] - after["sample_age_seconds"]
                if end - begin < 1.0:
                    continue
                busy = after["busy_seconds"] - before["busy_seconds"]
                window = asked_at(asked, begin), asked_at(asked, end)
                assert agrees(stub, gpu, *window, busy), (seed, gpu, window, busy)
                compared += 1
    assert compared > 300


def test_a_worker_that_takes_over_continues_every_counter(tmp_path: Path) -> None:
    stub = Stub.create(tmp_path, gpus=len(QUIRKS))
    drive(stub, seed=0)
    with Process(stub, staleness=10.0, window=10.0) as process:
        process.until(lambda shot: up(shot) and shot["gpus"][0]["observed_seconds"] > 0.5)
        dump = process.ask("dump")
    time.sleep(1.5)
    with Process(stub, staleness=10.0, window=10.0, restored=dump) as process:
        after = process.until(
            lambda shot: (
                up(shot)
                and all(
                    gpu["observed_seconds"] > dump["gpus"][gpu["identity"]["uuid"]]["observed"] + 2
                    for gpu in shot["gpus"]
                )
            )
        )
    for gpu in range(len(QUIRKS)):
        state, reading = dump["gpus"][uuid(gpu)], after["gpus"][gpu]
        begin, end = state["utilization_at"], after["at"] - reading["sample_age_seconds"]
        assert agrees(stub, gpu, begin, end, reading["busy_seconds"] - state["busy"])
        assert reading["energy_joules"] > state["values"]["energy_joules"]


def uuid(gpu: int) -> str:
    return f"GPU-00000000-0000-4000-8000-{gpu:012d}"
