"""The workers of one pod: a folder in which each process keeps its numbers and one of them serves for all.

A process's slab is its own file, locked as long as the process lives: POSIX locks end with the process, however
it ends, and are not inherited by its children. One more lock makes one process the leader: it reads the GPUs and
serves the endpoint; when it dies, another gets the lock. The counters of the dead are folded into one file, which
is replaced by a rename, so that no count is lost or taken twice whenever a process is killed.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shutil
import stat
import tempfile
from time import monotonic
from typing import Any

from gpuscale.errors import ConfigurationError
from gpuscale.publish.supervisor import process_identity, supervisor_of
from gpuscale.requests.slab import Slab, SlabReader, keys_path
from gpuscale.requests.totals import RequestTotals, read_totals

logger = logging.getLogger("gpuscale.workers")
_serial = itertools.count()


class PortTakenError(ConfigurationError):
    """Another service's processes use this port's folder."""


class WorkerGroup:
    """This process's membership in the group of workers that share one metrics endpoint.

    ``directory`` is chosen from the port and the user (in memory where possible) unless it is given; with port 0
    it is a private one and the group has one member.
    """

    def __init__(self, port: int, directory: str | None = None) -> None:
        self._explicit = directory is not None
        self._private = port == 0 and directory is None
        self.directory = directory or _default_directory(port)
        self._leader_file: int | None = None
        self._readers: dict[str, SlabReader] = {}
        self.stem = ""
        self.slab: Slab | None = None

    def join(self) -> Slab:
        """Make this process a member. Raises PortTakenError, or OSError when the folder cannot be used."""
        _make_private(self.directory)
        guard = os.open(self._path("join.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(guard, fcntl.LOCK_EX)
            self._agree_on_group()
            self.stem = f"{process_identity()}-{next(_serial)}"
            slab = Slab(self._path(f".{self.stem}.slab"))
            # Locked before it has its name: whoever sees the name sees it locked.
            fcntl.lockf(slab.file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = self._path(f"{self.stem}.slab")
            os.rename(keys_path(slab.path or ""), keys_path(path))
            os.rename(slab.path or "", path)
            slab.path = path
        finally:
            os.close(guard)
        self.slab = slab
        return slab

    def _agree_on_group(self) -> None:
        """Go on with the numbers in the folder if they are this service's, else begin anew.

        They are when a living member belongs to the same supervisor (gunicorn's arbiter, uvicorn's
        multiprocess parent), or none lives but the supervisor is the same; or when the folder was given.
        """
        mine = supervisor_of()
        living = [stem for stem in self._stems() if self._is_alive(stem)]
        try:
            with open(self._path("group")) as file:
                theirs = file.read()
        except FileNotFoundError:
            theirs = ""
        parent_is_member = any(stem.split("-")[0] == str(os.getppid()) for stem in living)
        same = theirs == mine or parent_is_member or self._explicit
        if living and not same:
            pid = living[0].split("-")[0]
            raise PortTakenError(
                f"another service (process {pid}) publishes its metrics here ({self.directory}); give this one "
                "another port (port= or GPUSCALE_PORT), or both the same GPUSCALE_RUN_DIR to publish together"
            )
        if not living and theirs != mine:
            for name in os.listdir(self.directory):
                if name != "join.lock":
                    os.unlink(self._path(name))
        if not living:
            self._write("group", mine)

    def try_lead(self) -> bool:
        """Whether this process is the leader now; it stays so until it ends or leaves."""
        if self._leader_file is None:
            file = os.open(self._path("leader.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                return False
            self._leader_file = file
        return True

    @property
    def may_have_others(self) -> bool:
        """Whether other workers can be there: a supervisor starts them, or they were given the same folder."""
        return self._explicit or supervisor_of() != process_identity()

    @property
    def leads(self) -> bool:
        """Whether this process became the leader."""
        return self._leader_file is not None

    def totals(self) -> RequestTotals:
        """The numbers of all workers, the dead's counters included."""
        retired, merged = self._retired()
        totals = retired
        for stem in self._stems():
            if stem not in merged:
                part = self._read(stem)
                if part is not None:
                    totals.add(part)
        return totals

    def retire_dead(self) -> int:
        """Fold the counters of ended workers into one file; the leader's duty. Returns how many there were."""
        retired, merged = self._retired()
        dead = [stem for stem in self._stems() if stem != self.stem and not self._is_alive(stem)]
        new = [stem for stem in dead if stem not in merged]
        for stem in new:
            part = self._read(stem)
            if part is not None:
                retired.add(part)
        if new:
            self._write("retired.json", json.dumps({"merged": dead, "totals": retired.to_json()}))
        for stem in dead:
            self._forget(stem)
            for path in (self._path(f"{stem}.slab"), self._path(f"{stem}.keys")):
                _unlink(path)
        return len(new)

    def save(self, name: str, value: Any) -> None:
        """Keep JSON for the other workers, replaced as a whole."""
        self._write(name, json.dumps(value))

    def load(self, name: str) -> Any | None:
        """What a worker saved last; None if nothing was."""
        try:
            with open(self._path(name)) as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def leave(self) -> None:
        """End the membership; the counters stay for the others, and nothing stays when there are none."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}
        others = [stem for stem in self._stems() if stem != self.stem and self._is_alive(stem)]
        alone = not others and (self._private or not self.may_have_others)
        if self._leader_file is not None:
            os.close(self._leader_file)
            self._leader_file = None
        if self.slab is not None:
            self.slab.close()
            self.slab = None
        if alone:
            shutil.rmtree(self.directory, ignore_errors=True)

    def forget_inherited(self) -> None:
        """In a forked child: drop what was the parent's; its locks did not come along."""
        for reader in self._readers.values():
            reader.close()
        if self._leader_file is not None:
            os.close(self._leader_file)
        self._readers, self._leader_file, self.slab = {}, None, None

    def _read(self, stem: str) -> RequestTotals | None:
        now = monotonic()
        if stem == self.stem and self.slab is not None:
            return read_totals(self.slab, now)
        alive = self._is_alive(stem)
        try:
            reader = self._readers.get(stem)
            if reader is None:
                reader = self._readers[stem] = SlabReader(self._path(f"{stem}.slab"))
            reader.refresh_keys()
        except (OSError, ValueError):
            return None  # retired between the listing and now
        totals = read_totals(reader, now)
        if not alive:
            # Its requests ended with it, at the latest now; its loop is nobody's any more.
            totals.in_flight, totals.loop_lag = 0.0, None
        return totals

    def _retired(self) -> tuple[RequestTotals, frozenset[str]]:
        raw = self.load("retired.json")
        if raw is None:
            return RequestTotals(), frozenset()
        return RequestTotals.from_json(raw["totals"]), frozenset(raw["merged"])

    def _stems(self) -> list[str]:
        names = os.listdir(self.directory)
        return [name[:-5] for name in names if name.endswith(".slab") and not name.startswith(".")]

    def _is_alive(self, stem: str) -> bool:
        if stem == self.stem:
            return True
        try:
            file = os.open(self._path(f"{stem}.slab"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the owner.
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    def _forget(self, stem: str) -> None:
        reader = self._readers.pop(stem, None)
        if reader is not None:
            reader.close()

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _write(self, name: str, text: str) -> None:
        temporary = self._path(f".{name}.{os.getpid()}")
        with open(temporary, "w") as file:
            file.write(text)
        os.replace(temporary, self._path(name))


def _default_directory(port: int) -> str:
    # In memory, where the numbers are written millions of times; a read-only root file system has it, too.
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()
    if port == 0:
        return tempfile.mkdtemp(prefix=f"gpuscale-{os.getuid()}-", dir=parent)
    return os.path.join(parent, f"gpuscale-{os.getuid()}-{port}")


def _make_private(directory: str) -> None:
    """The folder, made if need be; one that somebody else could write to is refused."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{directory} is not a folder")
    if status.st_uid != os.getuid() and status.st_uid != 0:
        raise PermissionError(f"{directory} belongs to another user; give a run_dir (GPUSCALE_RUN_DIR) of your own")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
