"""The workers of one pod: a folder in which each process keeps its numbers and one of them serves for all.

A process's slab is its own file, locked as long as the process lives: POSIX locks end with the process, however
it ends, and are not inherited by its children. One more lock makes one process the leader: it reads the GPUs and
serves the endpoint; when it dies, another gets the lock. The counters of the dead are folded into one file, which
is replaced by a rename, so that no count is lost or taken twice whenever a process is killed.

A POSIX lock is a process's, not a descriptor's: closing any descriptor of a file gives up the process's lock on it,
and asking for a lock that the process has always succeeds. So what this process owns is looked up in a table.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

from gpuscale.errors import ConfigurationError
from gpuscale.publish import folder
from gpuscale.publish.folder import GROUP, JOIN, KEYS, LEADER, RETIRED, SLAB, GroupFolder
from gpuscale.publish.supervisor import process_identity, supervisor_of
from gpuscale.requests.slab import Slab, SlabReader, keys_path
from gpuscale.requests.totals import RequestTotals, read_totals

logger = logging.getLogger("gpuscale.workers")
_serial = itertools.count()
_our_slabs: dict[str, Slab] = {}
"""Of this process's memberships, by path."""
_led_here: set[str] = set()
"""Folders of which this process is the leader."""
LOCKED_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


class PortTakenError(ConfigurationError):
    """Another service's processes use this port's folder."""


class WorkerGroup:
    """This process's membership in the group of workers that share one metrics endpoint. Safe from any thread.

    The folder is chosen by ``name`` (of the service: its port) and the user, in memory where possible, or lies under
    ``run_dir``. Without a name it is a private one, and the group has one member.
    """

    def __init__(self, name: str | None, run_dir: str | None = None) -> None:
        self._explicit = run_dir is not None
        self._private = name is None
        if name is None:
            path = folder.private_folder(run_dir)
        else:
            path = folder.default_folder(name) if run_dir is None else os.path.join(run_dir, name)
        self.folder = GroupFolder(path)
        self._leader_file: int | None = None
        self._readers: dict[str, SlabReader] = {}
        self._lock = threading.Lock()
        self.stem = ""
        self.slab: Slab | None = None

    def join(self) -> Slab:
        """Make this process a member. Raises PortTakenError, or OSError when the folder cannot be used."""
        with self._joining():
            self._agree_on_group()
            self.stem = f"{process_identity()}-{next(_serial)}"
            slab = Slab(self._slab_path(f".{self.stem}"))
            # Locked before it has its name: whoever sees the name sees it locked.
            fcntl.lockf(slab.file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = self._slab_path(self.stem)
            os.rename(keys_path(slab.path or ""), keys_path(path))
            _our_slabs[path] = slab
            os.rename(slab.path or "", path)
            slab.path = path
        self.slab = slab
        return slab

    @contextlib.contextmanager
    def _joining(self) -> Iterator[None]:
        """Keep other processes from joining, and the last one from removing the folder, meanwhile."""
        while True:
            self.folder.make()
            path = self.folder.file(JOIN)
            guard = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(guard, fcntl.LOCK_EX)
                if _is_file(guard, path):
                    yield
                    return
                # The folder was removed by the last of an earlier group while we waited: begin anew.
            finally:
                os.close(guard)

    def _agree_on_group(self) -> None:
        """Go on with the numbers in the folder if they are this service's, else begin anew.

        They are when a living member belongs to the same supervisor (gunicorn's arbiter, uvicorn's
        multiprocess parent), or none lives but the supervisor is the same; or when the folder was given.
        """
        mine = supervisor_of()
        living = [stem for stem in self.folder.stems() if self._is_alive(stem)]
        try:
            with open(self.folder.file(GROUP)) as file:
                theirs = file.read()
        except FileNotFoundError:
            theirs = ""
        parent_is_member = any(stem.split("-")[0] == str(os.getppid()) for stem in living)
        same = theirs == mine or parent_is_member or self._explicit
        if living and not same:
            pid = living[0].split("-")[0]
            raise PortTakenError(
                f"another service (process {pid}) publishes its metrics here ({self.folder.path}); give this one "
                "another port (port= or GPUSCALE_PORT), or both the same GPUSCALE_RUN_DIR to publish together"
            )
        if not living:
            if theirs != mine:
                self.folder.clear()
            self.folder.write(GROUP, mine)

    def try_lead(self) -> bool:
        """Whether this process is the leader now; it stays so until it ends or leaves."""
        if self._leader_file is None:
            if self.folder.path in _led_here:
                return False
            file = os.open(self.folder.file(LEADER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(file)
                return False
            self._leader_file = file
            _led_here.add(self.folder.path)
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
        """The numbers of all workers, the dead's counters included.

        Raises OSError rather than leave out a worker whose numbers cannot be read: a sum that goes back and forth
        is worse than a scrape that fails.
        """
        with self._lock:
            while True:
                # The leader may retire a worker while we add up: then its numbers are in neither place or in both.
                version = self.folder.version(RETIRED)
                totals, merged = self._retired()
                for stem in {*self.folder.stems(), self.stem}:
                    if stem not in merged:
                        part = self._read(stem)
                        if part is not None:
                            totals.add(part)
                if self.folder.version(RETIRED) == version:
                    return totals

    def retire_dead(self) -> int:
        """Fold the counters of ended workers into one file; the leader's duty. Returns how many there were."""
        with self._lock:
            retired, merged = self._retired()
            dead = [stem for stem in self.folder.stems() if not self._is_alive(stem)]
            new = [stem for stem in dead if stem not in merged]
            for stem in new:
                part = self._read(stem)
                if part is not None:
                    retired.add(part)
            if new:
                self.folder.save(RETIRED, {"merged": dead, "totals": retired.to_json()})
            for stem in dead:
                self._forget(stem)
                folder.remove(self._slab_path(stem))
                folder.remove(self.folder.file(stem + KEYS))
        return len(new)

    def save(self, name: str, value: Any) -> None:
        """Keep JSON for the other workers, replaced as a whole."""
        self.folder.save(name, value)

    def load(self, name: str) -> Any | None:
        """What a worker saved last; None if nothing was."""
        return self.folder.load(name)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[bool]:
        """End the membership. The block moves on to another slab; True: the numbers in this one stay for the others.

        Nothing stays when there can be no others.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            stays = True
            with contextlib.suppress(OSError):
                stack.enter_context(self._joining())
                stays = self._stays()
            try:
                yield stays
            finally:
                self._let_go()
                if not stays:
                    shutil.rmtree(self.folder.path, ignore_errors=True)

    def _stays(self) -> bool:
        others = any(stem != self.stem and self._is_alive(stem) for stem in self.folder.stems())
        return others or (self.may_have_others and not self._private)

    def _let_go(self) -> None:
        for stem in list(self._readers):
            self._forget(stem)
        if self._leader_file is not None:
            os.close(self._leader_file)
            self._leader_file = None
            _led_here.discard(self.folder.path)
        _our_slabs.pop(self._slab_path(self.stem), None)
        if self.slab is not None:
            self.slab.close()
            self.slab = None

    def forget_inherited(self) -> None:
        """In a forked child: drop what was the parent's; its locks did not come along."""
        self._lock = threading.Lock()
        self.slab = None
        self._let_go()

    def _read(self, stem: str) -> RequestTotals | None:
        """One worker's numbers; None when it was retired between the listing and now."""
        now = monotonic()
        ours = _our_slabs.get(self._slab_path(stem))
        if ours is not None:
            return read_totals(ours, now)
        alive = self._is_alive(stem)
        try:
            reader = self._readers.get(stem)
            if reader is None:
                reader = self._readers[stem] = SlabReader(self._slab_path(stem))
            reader.refresh_keys()
        except (FileNotFoundError, ValueError):
            return None
        totals = read_totals(reader, now)
        if not alive:
            # Its requests ended with it, at the latest now; its loop is nobody's any more.
            totals.in_flight, totals.loop_lag = 0.0, None
        return totals

    def _retired(self) -> tuple[RequestTotals, frozenset[str]]:
        raw = self.folder.load(RETIRED)
        if raw is None:
            return RequestTotals(), frozenset()
        return RequestTotals.from_json(raw["totals"]), frozenset(raw["merged"])

    def _is_alive(self, stem: str) -> bool:
        """Whether its process lives. Raises OSError where that cannot be found out: the living must not be retired."""
        path = self._slab_path(stem)
        if path in _our_slabs:
            return True
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the owner.
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LOCKED_BY_ANOTHER:
                return True
            raise
        finally:
            os.close(file)
        return False

    def _forget(self, stem: str) -> None:
        reader = self._readers.pop(stem, None)
        if reader is not None:
            reader.close()

    def _slab_path(self, stem: str) -> str:
        return self.folder.file(stem + SLAB)


def _is_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
