"""Which GPUs are this pod's. In doubt none: a sidecar that showed the node's whole set would scale on strangers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

UNNARROWED = ("", "all", "void")
"""Values of NVIDIA_VISIBLE_DEVICES that do not narrow. ``void`` is what the container device interface (CDI) leaves
in a container whose devices it injects itself, so NVML's own view is the truth there."""
DEVICE_FOLDER = "/var/run/nvidia-container-devices"
"""Value of the variable where the device plugin passes devices as mounts: the folder's entries are their names."""

SHORTEST_UUID = len("GPU-fef8089b")
"""NVIDIA's container toolkit takes a UUID's beginning, too; its documentation shows so many characters of one."""


@dataclass(frozen=True)
class Candidate:
    """A device that NVML shows, by all the ways in which somebody may name it."""

    uuid: str
    minor: str
    index: int
    parent_uuid: str = ""
    place: int | None = None
    """Of a MIG instance on its GPU."""
    gpu_instance: int | None = None
    compute_instance: int | None = None

    def named(self, token: str) -> bool:
        """Whether a UUID (its GPU's, too) or ``index`` or ``index:place`` means this device."""
        if _is_index(token):
            return token in (str(self.index), f"{self.index}:{self.place}")
        if token.startswith("MIG-GPU-") and self.place is not None:  # before driver 470
            name = f"MIG-{self.parent_uuid}/{self.gpu_instance}/{self.compute_instance}"
            return token in (self.uuid, name)
        uuids = (self.uuid, self.parent_uuid)
        if token.startswith("GPU-") and len(token) >= SHORTEST_UUID:
            return any(uuid.lower().startswith(token.lower()) for uuid in uuids)
        return token != "" and token in uuids


@dataclass(frozen=True)
class Container:
    """The devices of one container, as its processes show them."""

    minors: frozenset[str]
    """Numbers of its nodes /dev/nvidiaN."""
    names: tuple[str, ...] = ()
    """UUIDs in its environment: they narrow further, as for instances, which share their GPU's node."""
    instances: frozenset[tuple[str, int, int]] = frozenset()
    """(minor number, GPU instance, compute instance) of the MIG instances that it may open."""

    def has(self, device: Candidate) -> bool:
        """Whether it may use the device. Of a partitioned GPU's node alone nobody can tell which instance is meant."""
        if device.minor not in self.minors:
            return False
        if self.names:
            return any(device.named(name) for name in self.names)
        return device.place is None or (device.minor, device.gpu_instance, device.compute_instance) in self.instances


WAYS = ("process-namespace", "dra-claim", "pod-resources", "handover", "explicit")
"""A sidecar's ways to tell its devices, the first first."""


@dataclass(frozen=True)
class Decision:
    """Which of NVML's devices are this pod's, and what decided it."""

    decided_by: str
    names: tuple[str, ...] | None = None
    """UUIDs or indices; None: not narrowed by name."""
    minors: frozenset[str] | None = None
    """Numbers of /dev/nvidiaN; None: not narrowed by device node."""
    containers: tuple[Container, ...] | None = None
    """Those that have devices; None: not narrowed by them."""
    nothing: bool = False
    """No way could tell, or there is none: no device."""
    why: str = ""
    """For people: why there is none, or how it was decided."""

    def select(self, shown: Sequence[Candidate]) -> list[Candidate]:
        """The devices of ``shown`` that are this pod's. Only ever fewer than shown."""
        if self.nothing:
            return []
        chosen = list(shown)
        if self.containers is not None:
            chosen = [device for device in chosen if any(each.has(device) for each in self.containers)]
        if self.minors is not None:
            chosen = [device for device in chosen if device.minor in self.minors]
        if self.names is not None:
            chosen = _named(chosen, self.names)
        return chosen

    def is_overtaken_by(self, later: Decision, shown: Sequence[Candidate]) -> bool:
        """Whether ``later`` comes from a better way to tell, or from the same and has more of the devices ``shown``.

        Fewer are no reason: a container that ends and is started again has its devices all the while.
        """
        rank = {way: number for number, way in enumerate(WAYS)}
        before, now = rank.get(self.decided_by, len(WAYS)), rank.get(later.decided_by, len(WAYS))
        if now != before:
            return now < before
        return not set(later.select(shown)) <= set(self.select(shown))


def _is_index(name: str) -> bool:
    return name.isascii() and name.replace(":", "", 1).isdecimal()


def _named(shown: list[Candidate], names: tuple[str, ...]) -> list[Candidate]:
    """Indices count the host's devices, but inside a container NVML numbers what it shows anew: they narrow only
    where they can mean what is shown, and where as many are shown as are named, nothing is left to narrow."""
    indices = all(_is_index(name) for name in names)
    if indices and len(shown) <= len(set(names)):
        return shown
    return [device for device in shown if any(device.named(name) for name in names)]


def visible_devices(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...] | None:
    """The names in NVIDIA_VISIBLE_DEVICES; None where it does not narrow, () for ``none``."""
    value = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if value == DEVICE_FOLDER:
        folder = root / DEVICE_FOLDER.lstrip("/")
        return tuple(sorted(os.listdir(folder))) if folder.is_dir() else None
    if value in UNNARROWED:
        return None
    if value == "none":
        return ()
    names = tuple(token.strip().rpartition("=")[2] for token in value.split(",") if token.strip())
    return None if "all" in names else names


def in_process(environ: Mapping[str, str] | None = None) -> Decision:
    """The container's own devices: what NVML shows, narrowed by NVIDIA_VISIBLE_DEVICES."""
    names = visible_devices(os.environ if environ is None else environ)
    if names is None:
        return Decision("nvml")
    if not names:
        return Decision("visible-devices", nothing=True, why="NVIDIA_VISIBLE_DEVICES=none")
    why = f"NVML shows none of the devices in NVIDIA_VISIBLE_DEVICES={','.join(names)}"
    return Decision("visible-devices", names=names, why=why)


def decide(
    explicit: str | None = None,
    environ: Mapping[str, str] | None = None,
    proc_root: Path = Path("/proc"),
    dev_root: Path = Path("/dev"),
    pod_resources: Path | None = None,
) -> Decision:
    """A sidecar's devices, from the first way that can tell:

    1. ``process-namespace``: the device nodes and the environment of the pod's other containers (the Pod sets
       shareProcessNamespace; needs the same user or CAP_SYS_PTRACE);
    2. ``dra-claim``: a ResourceClaim shared by both containers: CDI injected the device nodes into this one;
    3. ``pod-resources``: the kubelet's socket, when it is mounted;
    4. ``handover``: UUIDs left by the in-process library in GPUSCALE_HANDOVER_DIR, a shared emptyDir;
    5. ``explicit``: ``explicit``, UUIDs joined by commas, or ``all`` for all that NVML shows.

    If none can tell, the decision is nothing, and ``why`` says what each way lacked.
    """
    from gpuscale.gpu import handover, other_containers
    from gpuscale.gpu import pod_resources as kubelet

    environ = os.environ if environ is None else environ
    lacks: list[str] = []
    decision = (
        other_containers.decide(proc_root, lacks)
        or _claim(environ, dev_root, lacks)
        or kubelet.decide(environ, pod_resources, lacks)
        or handover.decide(environ, lacks)
        or _explicit(explicit, lacks)
    )
    if decision is not None:
        return decision
    return Decision("nothing", nothing=True, why="which GPUs are this pod's is not known: " + "; ".join(lacks))


def _claim(environ: Mapping[str, str], dev_root: Path, lacks: list[str]) -> Decision | None:
    """CDI sets NVIDIA_VISIBLE_DEVICES=void and puts the claim's device nodes, and no others, into this container."""
    if environ.get("NVIDIA_VISIBLE_DEVICES") != "void":
        lacks.append("no claim gave this container devices (NVIDIA_VISIBLE_DEVICES is not void)")
        return None
    minors = device_minors(dev_root)
    if not minors:
        lacks.append("no claim gave this container devices (no /dev/nvidiaN)")
        return None
    if has_all_devices(dev_root):
        lacks.append("no claim gave this container devices (it is privileged, and shows its node's)")
        return None
    return Decision("dra-claim", minors=minors, why=f"NVML shows none of the claim's devices {_listed(minors)}")


def _explicit(explicit: str | None, lacks: list[str]) -> Decision | None:
    names = tuple(name.strip() for name in (explicit or "").split(",") if name.strip())
    if not names:
        lacks.append("--gpus was not given")
        return None
    if names == ("all",):
        return Decision("explicit")
    return Decision("explicit", names=names, why=f"NVML shows none of --gpus {','.join(names)}")


def device_minors(dev: Path) -> frozenset[str]:
    """Numbers N of the nodes nvidiaN in a /dev. Raises OSError where it may not be read."""
    names: Iterable[str] = os.listdir(dev) if dev.is_dir() else ()
    return frozenset(name[6:] for name in names if name.startswith("nvidia") and name[6:].isdigit())


def has_all_devices(dev: Path) -> bool:
    """Whether a /dev is the host's, as a privileged container has it: then its GPUs are the node's whole set.

    The kernel's log is a device of every host that no runtime gives to another container.
    """
    return (dev / "kmsg").exists()


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))
