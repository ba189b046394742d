"""The thread itself, with sources of Python: what crashes shows, what is restored goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot, aged, snapshot_from_json, snapshot_to_json
from gpuscale.gpu.sampler import Sampler
from gpuscale.gpu.source import Enumeration, RawReading, RawUtilization


class Device:
    utilization_period = 2.0
    broken = False

    def __init__(self, uuid: str = "GPU-a") -> None:
        self.identity = GpuIdentity(uuid, "fake", "0")
        self._at: float | None = None

    def read_utilization(self, cursor: int, failures: list[str]) -> RawUtilization:
        before, self._at = self._at, time.monotonic()
        return RawUtilization("gpm", percent=50.0, seconds=0.0 if before is None else self._at - before)

    def read(self) -> RawReading:
        if self.broken:
            raise RuntimeError("a bug")
        return RawReading(memory_used_bytes=1, memory_total_bytes=2, energy_millijoules=int(time.monotonic() * 1e5))


class Source:
    name = "fake"

    def __init__(self) -> None:
        self.device = Device()

    def open(self) -> None:
        pass

    def devices(self) -> Enumeration:
        return Enumeration((self.device,), decided_by="test")

    def close(self) -> None:
        pass


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def up(sampler: Sampler) -> bool:
    return sampler.snapshot().num_devices == 1


def test_a_crash_is_logged_shows_and_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    sampler = Sampler(source, interval=0.05, staleness=0.5, retry=(0.05, 0.1))
    sampler.start()
    try:
        wait_for(lambda: up(sampler) and sampler.alive)
        with caplog.at_level(logging.ERROR, "gpuscale.gpu"):
            source.device.broken = True
            wait_for(lambda: not sampler.alive and sampler.snapshot().num_devices == 0)
        assert [record for record in caplog.records if record.exc_info]
        assert sampler.snapshot().errors["SAMPLER_CRASHED"] >= 1
        source.device.broken = False
        wait_for(lambda: up(sampler) and sampler.alive)
    finally:
        assert sampler.stop(2)
    assert not sampler.alive


def test_what_takes_the_dump_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    def full(_: object) -> None:
        raise OSError("no space left")

    sampler = Sampler(Source(), interval=0.05, on_cycle=full)
    sampler.start()
    wait_for(lambda: "no space left" in caplog.text and up(sampler))
    assert sampler.alive
    assert sampler.stop(2)


def test_a_restored_sampler_shows_and_continues_what_was_known() -> None:
    dumps: list[str] = []
    first = Sampler(Source(), interval=0.05, on_cycle=lambda dump: dumps.append(json.dumps(dump)))
    first.start()
    wait_for(lambda: (first.snapshot().gpus or [None])[0] and (first.snapshot().gpus[0].busy_seconds or 0) > 0.1)
    first.stop(2)
    before = first.snapshot().gpus[0]
    second = Sampler(Source(), interval=0.05, restored=json.loads(dumps[-1]))
    reading = second.snapshot().gpus[0]  # before any call of the driver
    assert reading.up
    assert reading.busy_seconds == before.busy_seconds
    second.start()
    wait_for(lambda: (second.snapshot().gpus[0].busy_seconds or 0) > (before.busy_seconds or 0))
    second.stop(2)
    assert (second.snapshot().gpus[0].energy_joules or 0) > (before.energy_joules or 0)


def test_a_snapshot_survives_json() -> None:
    sampler = Sampler(Source(), interval=0.05)
    sampler.start()
    wait_for(lambda: up(sampler))
    sampler.stop(2)
    snapshot: GpuSnapshot = sampler.snapshot()
    assert snapshot_from_json(json.loads(json.dumps(snapshot_to_json(snapshot)))) == snapshot


def test_a_snapshot_of_another_worker_grows_old() -> None:
    """Every field is filled in, so that one which is added later is not forgotten when the values are dropped."""
    identity = GpuIdentity("GPU-a", "fake", "0")
    numbers = {field.name: 1 for field in fields(GpuReading) if field.name not in ("identity", "up", "errors")}
    reading = GpuReading(identity, up=True, errors={"TIMEOUT": 2}, **numbers)  # type: ignore[arg-type]
    snapshot = GpuSnapshot("nvml", (reading,))
    (young,) = aged(snapshot, seconds=5.0, staleness=10.0).gpus
    assert young == replace(reading, sample_age_seconds=6.0)
    (old,) = aged(snapshot, seconds=9.5, staleness=10.0).gpus
    assert old == GpuReading(identity, up=False, sample_age_seconds=10.5, errors={"TIMEOUT": 2})
