"""The folder that the workers of one pod share: where it is, which files in it are ours, how one is replaced."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from typing import Any

SLAB, KEYS = ".slab", ".keys"
JOIN, LEADER = "join.lock", "leader.lock"
GROUP, RETIRED, GPUS = "group", "retired.json", "gpu.json"
_REPLACED = (GROUP, RETIRED, GPUS)


class GroupFolder:
    """Files by name in one folder. Methods raise OSError as the operating system does."""

    def __init__(self, path: str) -> None:
        self.path = path

    def file(self, name: str) -> str:
        """The whole path of ``name``."""
        return os.path.join(self.path, name)

    def make(self) -> None:
        """Make the folder if need be. Raises PermissionError for one that belongs to another user."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        status = os.lstat(self.path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{self.path} is not a folder")
        if status.st_uid != os.getuid() and status.st_uid != 0:
            raise PermissionError(f"{self.path} belongs to another user; give a run_dir (GPUSCALE_RUN_DIR) of your own")

    def stems(self) -> list[str]:
        """The members' names, the dead's too; none when somebody has removed the folder."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return [name.removesuffix(SLAB) for name in names if name.endswith(SLAB) and not name.startswith(".")]

    def clear(self) -> None:
        """Remove what earlier groups left. The folder may be the user's: whatever else is in it stays."""
        for name in os.listdir(self.path):
            plain = name.removeprefix(".")
            ours = plain.endswith((SLAB, KEYS)) or plain.startswith(_REPLACED) or name == LEADER
            if ours:
                remove(self.file(name))

    def save(self, name: str, value: Any) -> None:
        """Replace a file as a whole with JSON: a reader sees the old one or the new one."""
        self.write(name, json.dumps(value))

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole."""
        temporary = self.file(f".{name}.{os.getpid()}")
        with open(temporary, "w") as file:
            file.write(text)
        os.replace(temporary, self.file(name))

    def load(self, name: str) -> Any | None:
        """The JSON that was saved last; None if nothing was."""
        try:
            with open(self.file(name)) as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def version(self, name: str) -> object:
        """Changes whenever the file is replaced."""
        try:
            status = os.stat(self.file(name))
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def default_folder(name: str) -> str:
    """In memory, where the numbers are written millions of times; a read-only root file system has it, too."""
    return os.path.join(_parent(), f"gpuscale-{os.getuid()}-{name}")


def private_folder(parent: str | None = None) -> str:
    """A new one that nobody else uses."""
    if parent is not None:
        os.makedirs(parent, mode=0o700, exist_ok=True)
    return tempfile.mkdtemp(prefix=f"gpuscale-{os.getuid()}-", dir=parent or _parent())


def remove(path: str) -> None:
    """Unlink, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _parent() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()
