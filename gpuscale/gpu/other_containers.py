"""The pod's other containers as a shared process namespace shows them: their devices are the pod's."""

from __future__ import annotations

import os
from pathlib import Path

from gpuscale.gpu.ownership import Decision, device_minors, visible_devices


def decide(proc: Path, lacks: list[str]) -> Decision | None:
    """From the processes that live in another mount namespace than ours, as other containers' do.

    A container with device nodes tells by them; where its environment names UUIDs, these narrow further, as they do
    for MIG instances, which share their GPU's node. One without nodes (the pause container, a helper) has no GPU.
    """
    own = _mounts(proc / "self")
    minors: set[str] = set()
    names: list[str] = []
    named = unnamed = refused = others = 0
    for process in sorted(proc.iterdir()) if proc.is_dir() else ():
        if not process.name.isdigit():
            continue
        try:
            if _mounts(process) == own:
                continue
            others += 1
            nodes = device_minors(process / "root/dev")
            visible = visible_devices(_environ(process), process / "root")
        except PermissionError:
            refused += 1
            others += 1
            continue
        except OSError:
            continue  # it ended meanwhile
        if not nodes or visible == ():
            continue
        minors |= nodes
        uuids = [name for name in visible or () if name.startswith(("GPU-", "MIG-"))]
        named, unnamed = named + bool(uuids), unnamed + (not uuids)
        names += uuids
    if not minors:
        lacks.append(_lack(others, refused))
        return None
    why = "NVML shows none of the devices that the pod's other containers have"
    if unnamed:
        return Decision("process-namespace", minors=frozenset(minors), why=why)
    return Decision("process-namespace", minors=frozenset(minors), names=tuple(dict.fromkeys(names)), why=why)


def _lack(others: int, refused: int) -> str:
    if refused:
        return "the other containers' processes may not be read (run as the same user or add CAP_SYS_PTRACE)"
    if others:
        return "no process of another container has an NVIDIA device (yet)"
    return "no process of another container is visible (shareProcessNamespace)"


def _mounts(process: Path) -> str:
    return os.readlink(process / "ns/mnt")


def _environ(process: Path) -> dict[str, str]:
    entries = (process / "environ").read_bytes().split(b"\0")
    pairs = (entry.decode("utf-8", "replace").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}
