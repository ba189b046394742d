"""The pod's other containers as a shared process namespace shows them: their devices are the pod's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuscale.gpu.ownership import Container, Decision, device_minors, has_all_devices, visible_devices

MIG_MINORS = "driver/nvidia-caps/mig-minors"
"""Of /proc: lines such as ``gpu0/gi1/ci0/access 13``, which say what the node /dev/nvidia-caps/nvidia-cap13 opens."""
_INSTANCE = re.compile(r"gpu(\d+)/gi(\d+)/ci(\d+)/access (\d+)")


def decide(proc: Path, lacks: list[str]) -> Decision | None:
    """From the processes that live in another mount namespace than ours, as other containers' do.

    A container with device nodes tells by them, and by the UUIDs and the MIG instances that it is given beside them.
    One without nodes (the pause container, a helper) has no GPU; a privileged one has all of its node's, so without
    UUIDs it tells nothing.
    """
    own = _mounts(proc / "self")
    instances = _instances(proc)
    containers: set[Container] = set()
    refused = privileged = others = 0
    for process in sorted(proc.iterdir()) if proc.is_dir() else ():
        if not process.name.isdigit():
            continue
        try:
            if _mounts(process) == own:
                continue
            others += 1
            dev = process / "root/dev"
            nodes = device_minors(dev)
            visible = visible_devices(_environ(process), process / "root")
            open_to = frozenset(instances[cap] for cap in _caps(dev) if cap in instances)
            whole = has_all_devices(dev)
        except PermissionError:
            refused += 1
            others += 1
            continue
        except OSError:
            continue  # it ended meanwhile
        if not nodes or visible == ():
            continue
        uuids = tuple(name for name in visible or () if name.startswith(("GPU-", "MIG-")))
        if whole and not uuids:
            privileged += 1
            continue
        containers.add(Container(nodes, uuids, open_to))
    if not containers:
        lacks.append(_lack(others, refused, privileged))
        return None
    why = "NVML shows none of the devices that the pod's other containers have"
    return Decision("process-namespace", containers=tuple(sorted(containers, key=repr)), why=why)


def _instances(proc: Path) -> dict[str, tuple[str, int, int]]:
    """By the number of its node: which MIG instance that opens."""
    try:
        lines = (proc / MIG_MINORS).read_text()
    except OSError:
        return {}  # no driver, or one without MIG
    return {cap: (gpu, int(gi), int(ci)) for gpu, gi, ci, cap in _INSTANCE.findall(lines)}


def _caps(dev: Path) -> list[str]:
    """Numbers N of the nodes nvidia-caps/nvidia-capN."""
    folder = dev / "nvidia-caps"
    return [name[10:] for name in os.listdir(folder) if name.startswith("nvidia-cap")] if folder.is_dir() else []


def _lack(others: int, refused: int, privileged: int) -> str:
    if privileged:
        return "another container is privileged and shows its node's devices, not the pod's"
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
