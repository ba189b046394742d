"""Whose processes the driver lists: their PIDs are this container's or the host's, which shows at run time.

Since 535.113 the driver lists a container's own processes by the PIDs of its namespace, before that all of the
host's by the host's PIDs, which cannot be told apart from inside. So a PID counts as ours if it is a process that we
can see, and memory is only reported while every listed PID is one: a list of strangers is the host's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of the Linux kernel: the host's own namespace has this number on every machine."""


def own_memory(entries: Sequence[tuple[int, int | None]], proc: Path = Path("/proc")) -> int | None:
    """Sum of the bytes of this pod's processes among ``entries`` (PID, bytes); None where it cannot be known.

    In a pod's PID namespace every visible process is the pod's. In the host's namespace those of our own cgroup are.
    """
    if not entries:
        return None  # nobody, or a driver that hides its list from containers
    on_host = _namespace(proc) == INITIAL_PID_NAMESPACE
    group = _cgroup(proc, "self") if on_host else ""
    total = visible = 0
    for pid, used in dict(entries).items():
        if not (proc / str(pid)).exists():
            if on_host:
                continue  # it ended meanwhile
            return None
        visible += 1
        if on_host and _cgroup(proc, str(pid)) != group:
            continue
        if used is None:
            return None
        total += used
    return total if visible else None


def _namespace(proc: Path) -> str:
    try:
        return os.readlink(proc / "self/ns/pid")
    except OSError:
        return ""


def _cgroup(proc: Path, pid: str) -> str:
    try:
        return (proc / pid / "cgroup").read_text()
    except OSError:
        return "?" + pid
