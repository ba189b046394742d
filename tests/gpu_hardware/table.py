"""What was measured, what is wrong with it, and the page that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LOAD_LIMIT = 3.0
"""Percentage points of duty cycle, and percent of the window in busy seconds, that may be wrong."""
TRUTH_LIMIT = 1.0
"""Percent by which the bursts' lengths on the host's clock and by CUDA events may differ with one process."""
ENERGY_LIMIT = 5.0
"""Percent: what NVML's documentation gives as the accuracy of its power reading."""
MEMORY_LIMIT = 3.0
"""Percent; or MEMORY_GRAIN bytes, whichever is more."""
MEMORY_GRAIN = 32 << 20
COST_LIMIT = 0.5
"""Percent of a core."""


@dataclass(frozen=True)
class LoadRow:
    """One duty cycle. Seconds, joules and percent."""

    processes: int
    asked: float
    seconds: float
    true_percent: float
    duty_cycle: float | None
    true_busy: float
    busy: float | None
    observed: float | None
    host_seconds: float
    device_seconds: float
    power_time: float | None
    energy: float | None
    cost_percent: float
    method: str

    def wrong(self) -> list[str]:
        """What is outside its limit, a sentence each. Energy that the GPU does not tell is not wrong."""
        found = []
        if self.duty_cycle is None or self.busy is None:
            return ["duty cycle or busy seconds are absent"]
        if abs(self.duty_cycle - self.true_percent) > LOAD_LIMIT:
            found.append(f"duty cycle {self.duty_cycle:.1f} %, truly {self.true_percent:.1f} %")
        if abs(self.busy - self.true_busy) > LOAD_LIMIT / 100 * self.seconds:
            found.append(f"{self.busy:.2f} busy seconds, truly {self.true_busy:.2f} of {self.seconds:.2f}")
        # With two, a burst's start event waits for the other's time slice: the GPU is busy, this clock does not run.
        doubt = abs(self.device_seconds - self.host_seconds) > TRUTH_LIMIT / 100 * self.host_seconds
        if self.processes == 1 and doubt:
            found.append(f"truth in doubt: {self.host_seconds:.2f} s by clock, {self.device_seconds:.2f} by events")
        energy, power_time = self.energy, self.power_time
        if energy is not None and power_time is not None and abs(energy - power_time) > ENERGY_LIMIT / 100 * power_time:
            found.append(f"{energy:.0f} J, power × time is {power_time:.0f} J")
        if self.cost_percent > COST_LIMIT:
            found.append(f"the sampler takes {self.cost_percent:.2f} % of a core")
        return found


@dataclass(frozen=True)
class MemoryRow:
    """What allocating did, in bytes."""

    processes: int
    reserved: int
    """Rise of torch's own figure, all processes."""
    used: int | None
    """Rise of the GPU's memory in use."""
    own_used: int | None
    """Rise of this pod's processes' memory."""
    contexts: int | None
    """Rise when the processes started, less what torch reserved: CUDA's contexts."""

    def wrong(self) -> list[str]:
        """What is outside its limit, a sentence each. A GPU that does not tell per process is not wrong."""
        if self.used is None:
            return ["memory in use is absent"]
        most = max(MEMORY_LIMIT / 100 * self.reserved, MEMORY_GRAIN)
        found = []
        for name, value in (("memory in use", self.used), ("own memory", self.own_used)):
            if value is not None and abs(value - self.reserved) > most:
                found.append(f"{name} rose by {_mib(value)} MiB, torch's by {_mib(self.reserved)}")
        if self.contexts is not None and self.contexts <= 0:
            found.append(f"the contexts take {_mib(self.contexts)} MiB")
        return found


LOAD_HEAD = (
    "processes", "asked %", "true %", "duty cycle %", "true busy s", "busy s", "observed s", "window s",
    "power × time J", "energy J", "sampler % of a core", "method", "within",
)  # fmt: skip
MEMORY_HEAD = ("processes", "torch MiB", "used MiB", "own MiB", "contexts MiB", "within")


def _mib(value: int | None) -> str:
    return "–" if value is None else f"{value / (1 << 20):.0f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *rows)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


def load_table(rows: Sequence[LoadRow]) -> list[str]:
    """Markdown lines."""
    cells = [
        (
            str(row.processes), f"{row.asked:.0f}", _number(row.true_percent, 1), _number(row.duty_cycle, 1),
            _number(row.true_busy, 2), _number(row.busy, 2), _number(row.observed, 2), _number(row.seconds, 2),
            _number(row.power_time, 0), _number(row.energy, 0), _number(row.cost_percent, 3), row.method,
            "no" if row.wrong() else "yes",
        )
        for row in rows
    ]  # fmt: skip
    return _table(LOAD_HEAD, cells)


def memory_table(rows: Sequence[MemoryRow]) -> list[str]:
    """Markdown lines."""
    cells = [
        (str(row.processes), *map(_mib, (row.reserved, row.used, row.own_used, row.contexts)),
         "no" if row.wrong() else "yes")
        for row in rows
    ]  # fmt: skip
    return _table(MEMORY_HEAD, cells)


def section(gpu: str, driver: str, date: str, torch: str, loads: Sequence[LoadRow], memory: Sequence[MemoryRow]) -> str:
    """The part of the page that is about one GPU, between marks that name it."""
    lines = [
        _mark(gpu),
        f"## {gpu}, driver {driver}, {date}",
        "",
        f"`make test-gpu`, torch {torch}. Matrix products in bursts; truth: the union of the processes' bursts.",
        "",
        *load_table(loads),
        "",
        f"Limits: duty cycle ± {LOAD_LIMIT:.0f} points, busy seconds ± {LOAD_LIMIT:.0f} % of the window, energy "
        f"± {ENERGY_LIMIT:.0f} %, sampler {COST_LIMIT} % of a core; – is not told by this GPU.",
        "",
        "Memory that rose when torch allocated:",
        "",
        *memory_table(memory),
        _mark(gpu, "end"),
    ]
    return "\n".join(lines) + "\n"


def _mark(gpu: str, which: str = "begin") -> str:
    return f"<!-- measured on {gpu}: {which} -->"


def merged(page: str, gpu: str, text: str) -> str:
    """The page with this GPU's section replaced, or added at the end; everything else stays."""
    begin, end = _mark(gpu), _mark(gpu, "end") + "\n"
    before, found, rest = page.partition(begin)
    if found and end in rest:
        return before + text + rest.partition(end)[2]
    return (page.rstrip("\n") or "# Measured on real GPUs") + "\n\n" + text
