"""Compile the stub, once for each content of its sources."""

import fcntl
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

SONAME = "libnvidia-ml.so.1"
SOURCES = Path(__file__).resolve().parent
FLAGS = ["-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]


def header_folder() -> Path:
    """The folder of nvml.h from the distribution ``nvidia-nvml-dev`` (its path names the CUDA version)."""
    for file in importlib.metadata.files("nvidia-nvml-dev") or []:
        if file.name == "nvml.h":
            return Path(str(file.locate())).resolve().parent
    raise FileNotFoundError("nvidia-nvml-dev is installed without nvml.h")


def build(directory: Path | None = None, *, flags: list[str] | None = None) -> Path:
    """Compile into a folder beneath ``directory`` named after the sources' hash; return the library's path.

    Several pytest processes may ask at the same time: the file appears under its name only when it is whole.
    """
    directory = directory or SOURCES.parents[1] / "build" / "nvml_stub"
    headers = header_folder()
    command = [os.environ.get("CC", "cc"), *FLAGS, *(flags or []), "-isystem", str(headers)]
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(repr(command).encode())
    for source in [*sources, *sorted(SOURCES.glob("*.h")), headers / "nvml.h"]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    library = directory / digest.hexdigest()[:16] / SONAME
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            unfinished = library.with_suffix(f".{os.getpid()}")
            link = [f"-Wl,-soname,{SONAME}", "-o", str(unfinished), *map(str, sources), "-lm", "-pthread"]
            subprocess.run([*command, *link], check=True)
            unfinished.rename(library)
    return library


if __name__ == "__main__":
    print(build())
