"""UUIDs that the in-process library leaves for a sidecar on a volume that both containers mount."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from gpuscale.gpu.ownership import Decision
from gpuscale.gpu.reading import GpuSnapshot

VARIABLE = "GPUSCALE_HANDOVER_DIR"
FILE = "gpuscale-gpus.json"


def write_handover(folder: str | os.PathLike[str], snapshot: GpuSnapshot) -> None:
    """Leaves the snapshot's UUIDs, all at once, for other users of the pod to read. Raises OSError."""
    path = Path(folder) / FILE
    text = json.dumps({"format": 1, "uuids": [gpu.identity.uuid for gpu in snapshot.gpus]})
    try:
        if path.read_text() == text:
            return
    except OSError:
        pass  # not there yet
    fresh = path.with_name(f"{FILE}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(0o644)
    os.replace(fresh, path)


def decide(environ: Mapping[str, str], lacks: list[str]) -> Decision | None:
    """From the file, if it is there, whole, and names a device."""
    folder = environ.get(VARIABLE)
    if not folder:
        lacks.append(f"no UUIDs were handed over ({VARIABLE} is not set)")
        return None
    try:
        raw = json.loads((Path(folder) / FILE).read_text())
        uuids = tuple(uuid for uuid in raw["uuids"] if isinstance(uuid, str) and uuid)
    except (OSError, ValueError, KeyError, TypeError):
        uuids = ()
    if not uuids:
        lacks.append(f"no UUIDs were handed over (yet) in {folder}")
        return None
    return Decision("handover", names=uuids, why=f"NVML shows none of the GPUs handed over: {', '.join(uuids)}")
