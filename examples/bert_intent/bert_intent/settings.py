"""The options of the service: one frozen value, with ``BERT_*`` environment variables as defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

OWN_CHECKPOINT = Path(__file__).parent.parent / "model"
MAX_CHARACTERS = 512
"""Of one query."""
MAX_QUERIES = 64
"""Of one POST."""


class SettingsError(ValueError):
    """An option has a wrong value; the message names the variable and what it may be."""


@dataclass(frozen=True)
class ServiceSettings:
    """What a person can choose. ``from_environment`` reads ``BERT_<NAME>``."""

    model: str = str(OWN_CHECKPOINT)
    """Folder of a sequence-classification checkpoint, or its name on the Hugging Face hub."""
    device: str = "auto"
    """``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int = 0
    """Threads of one forward pass on the CPU; 0 takes what this machine or container has for each worker."""
    max_batch: int = 64
    """Texts of one batch."""
    queue_limit: int = 256
    """Texts that may wait; over it the answer is 503."""
    drain_seconds: float = 5.0
    """Seconds between SIGTERM and the closing of the port: load balancers see "not ready" and look elsewhere."""
    grace_seconds: float = 25.0
    """Seconds after SIGTERM by which the process has ended. Keep it under terminationGracePeriodSeconds (30)."""
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 8080

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ServiceSettings:
        """``BERT_<NAME>`` where it is set and not empty, else the default. Raises SettingsError."""
        environ = os.environ if environ is None else environ
        given: dict[str, object] = {}
        for name, parse in _PARSERS.items():
            variable = f"BERT_{name.upper()}"
            value = environ.get(variable, "").strip()
            if value:
                given[name] = parse(variable, value)
        settings = cls(**given)  # type: ignore[arg-type]
        if settings.drain_seconds >= settings.grace_seconds:
            raise SettingsError(
                f"BERT_DRAIN_SECONDS ({settings.drain_seconds:g}) must be smaller than "
                f"BERT_GRACE_SECONDS ({settings.grace_seconds:g}), which counts from the same moment"
            )
        return settings


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def parse(variable: str, value: str) -> int:
        if not (value.isdecimal() and low <= int(value) <= high):
            raise SettingsError(f"{variable} must be a whole number from {low} to {high}, not {value!r}")
        return int(value)

    return parse


def _seconds(variable: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise SettingsError(f"{variable} must be a number of seconds from 0 to 3600, not {value!r}")
    return seconds


def _device(variable: str, value: str) -> str:
    kind, colon, index = value.partition(":")
    if value in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
        return value
    raise SettingsError(f"{variable} must be auto, cpu, cuda or cuda:N, not {value!r}")


def _text(variable: str, value: str) -> str:
    return value


_PARSERS: dict[str, Callable[[str, str], object]] = {
    "model": _text,
    "device": _device,
    "threads": _whole(0, 1024),
    "max_batch": _whole(1, 1024),
    "queue_limit": _whole(MAX_QUERIES, 100_000),
    "drain_seconds": _seconds,
    "grace_seconds": _seconds,
    "workers": _whole(1, 64),
    "host": _text,
    "port": _whole(0, 65535),
}
