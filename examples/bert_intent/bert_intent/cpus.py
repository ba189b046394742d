"""How many CPUs this process may use: its affinity and its cgroup's quota, not the node's size.

In a pod with a CPU limit ``os.cpu_count()`` is the node's; as many threads as that wait for each other while the
kernel throttles them. Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and
scheduler/sched-bwc.rst (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that the scheduler gives this process; a fraction under a quota such as 500m."""
    limits = [float(len(os.sched_getaffinity(0))), *_quotas(proc, cgroup)]
    return min(limits)


def threads_for(workers: int, cpus: float) -> int:
    """Threads of one forward pass, when ``workers`` processes share ``cpus``: at least 1."""
    return max(1, math.floor(cpus / workers))


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    for folder in _folders(proc, cgroup):
        maximum = _words(folder / "cpu.max")
        if len(maximum) == 2 and maximum[0] != "max":
            yield int(maximum[0]) / int(maximum[1])
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            yield int(quota[0]) / int(period[0])


def _folders(proc: Path, cgroup: Path) -> Iterator[Path]:
    """This process's cgroup and those above it, in version 2 and in version 1's cpu hierarchy.

    Inside a container the paths of /proc are often the host's and absent; then the mount's root is ours.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        roots = []
        if controllers == "":
            roots = [cgroup, cgroup / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroup / controllers, cgroup / "cpu"]
        own = PurePosixPath(path.lstrip("/"))
        for root in roots:
            for part in (own, *own.parents):
                yield root / part


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
