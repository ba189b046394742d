"""The workers' folder: no count lost, doubled or taken from the living, whatever goes wrong with files."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuscale.publish import workers
from gpuscale.publish.workers import WorkerGroup
from gpuscale.requests.accounting import RequestAccounting
from gpuscale.requests.slab import Slab, SlabReader
from gpuscale.requests.totals import read_totals
from tests.publish.counting import KEY, count


def member(run_dir: Path, times: int = 1) -> tuple[WorkerGroup, RequestAccounting]:
    """A worker that has answered so many requests."""
    group = WorkerGroup("1", str(run_dir))
    accounting = RequestAccounting()
    accounting.move_to(group.join())
    count(accounting, times)
    return group, accounting


def die(group: WorkerGroup) -> None:
    """What the kernel does when a process ends."""
    assert group.slab is not None
    del workers._our_slabs[group._slab_path(group.stem)]
    group.slab.close()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[WorkerGroup]:
    """A group of one member that has counted nothing."""
    made = WorkerGroup("1", str(tmp_path))
    RequestAccounting().move_to(made.join())
    yield made
    with made.leaving():
        pass


def test_a_worker_that_is_retired_during_a_scrape_is_counted_once(group: WorkerGroup, tmp_path: Path) -> None:
    """The leader folds numbers and removes files, in another process, while somebody adds up."""
    leader = WorkerGroup("1", str(tmp_path))
    RequestAccounting().move_to(leader.join())
    stop, failures = threading.Event(), []

    def retire() -> None:
        try:
            while not stop.is_set():
                leader.retire_dead()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=retire)
    thread.start()
    last = 0.0
    try:
        for number in range(1, 60):
            worker, _ = member(tmp_path)
            die(worker)
            for _ in range(10):
                seen = group.totals().requests.get(KEY, 0.0)
                assert last <= seen == number
                last = seen
    finally:
        stop.set()
        thread.join()
    assert failures == []
    with leader.leaving():
        pass


def test_the_endpoints_thread_and_the_keeping_one_share_a_group(group: WorkerGroup, tmp_path: Path) -> None:
    """Both in the leader's process: one reads slabs that the other gives up."""
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            for _ in range(300):
                group.totals()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    retired = 0
    while thread.is_alive():
        worker, _ = member(tmp_path)
        die(worker)
        retired += group.retire_dead()
    thread.join()
    assert failures == []
    assert group.totals().requests[KEY] == retired


@pytest.mark.parametrize("module_and_name", ["os.open", "fcntl.lockf"])
def test_without_file_descriptors_the_living_are_not_taken_for_dead(
    group: WorkerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module_and_name: str
) -> None:
    other, _ = member(tmp_path, 3)
    path = other._slab_path(other.stem)
    # As from another process: this one knows its own.
    slab = workers._our_slabs.pop(path)
    number = {"os.open": errno.EMFILE, "fcntl.lockf": errno.ENOLCK}[module_and_name]

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module_and_name, fail)
        for act in (group.retire_dead, group.totals):
            with pytest.raises(OSError, match=os.strerror(number)):
                act()
    assert os.path.exists(path)
    workers._our_slabs[path] = slab
    assert group.totals().requests[KEY] == 3
    die(other)


def test_memberships_of_one_process_do_not_take_each_other_for_dead(group: WorkerGroup, tmp_path: Path) -> None:
    """A process's lock never keeps the process itself out."""
    other, _ = member(tmp_path, 2)
    assert group.retire_dead() == other.retire_dead() == 0
    assert group.totals().requests == other.totals().requests == {("other", "other", "other"): 0, KEY: 2}
    assert group.try_lead()
    assert not other.try_lead()
    with group.leaving() as stays:
        assert stays
    assert other.try_lead()
    die(other)


def test_only_our_own_files_are_removed_from_a_folder_that_was_given(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    (folder / "nested").mkdir()
    for name in ("1-2-0.slab", "1-2-0.keys", ".1-2-1.slab", "group", "retired.json", ".retired.json.7", "leader.lock"):
        (folder / name).write_text("of an earlier start")
    other, _ = member(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "precious.txt", "nested", "join.lock", "group", f"{other.stem}.slab", f"{other.stem}.keys",
    }  # fmt: skip
    die(other)


def test_a_folder_that_somebody_removed_leaves_the_own_numbers(group: WorkerGroup) -> None:
    """systemd-logind empties /dev/shm when a user logs out, unless told otherwise."""
    for name in os.listdir(group.folder.path):
        os.unlink(group.folder.file(name))
    os.rmdir(group.folder.path)
    assert group.totals().in_flight == 0


def test_a_joiner_waits_for_the_folder_that_the_last_one_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that it got is of a file that is there no more: it begins anew."""
    lock, calls = fcntl.lockf, []
    group = WorkerGroup(f"test-{os.getpid()}")

    def remove_meanwhile(file: int, *how: int) -> None:
        lock(file, *how)
        calls.append(file)
        if len(calls) == 1:
            os.unlink(group.folder.file("join.lock"))
            os.rmdir(group.folder.path)

    monkeypatch.setattr(fcntl, "lockf", remove_meanwhile)
    slab = group.join()
    assert os.path.exists(slab.path or "")
    with group.leaving() as stays:
        assert not stays
    assert not os.path.exists(group.folder.path)


def test_a_fork_in_the_middle_of_a_scrape_leaves_nothing_of_the_parents(group: WorkerGroup, tmp_path: Path) -> None:
    other, _ = member(tmp_path)
    die(other)
    group.totals()
    (reader,) = group._readers.values()
    held = reader.slots[0:10]  # as the endpoint's thread holds it while it adds up
    group._lock.acquire()
    pid = os.fork()
    if pid == 0:
        group.forget_inherited()
        os._exit(0 if not group._readers and group._lock.acquire(blocking=False) else 1)
    group._lock.release()
    assert os.waitpid(pid, 0)[1] == 0
    held.release()


# --- a full disk


def test_a_full_disk_costs_labels_and_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a file are reserved before they are used: a store to a full /dev/shm would kill the process."""
    accounting = RequestAccounting(Slab(str(tmp_path / "1.slab")))
    count(accounting, 2)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(1500):  # far beyond the pages that were reserved
        accounting.end(accounting.begin(), "GET", f"/{number % 400}", 200 + number // 400)
    totals = read_totals(accounting.slab)
    assert sum(totals.requests.values()) == 1502
    assert totals.requests[("other", "other", "other")] > 0
    os.truncate(tmp_path / "1.slab", os.stat(tmp_path / "1.slab").st_blocks * 512)  # touching more would be SIGBUS
    count(accounting, 2)
    with pytest.raises(OSError, match="No space left"):
        Slab(str(tmp_path / "2.slab"))


@pytest.mark.parametrize("written", [None, 5])
def test_labels_that_cannot_be_written_count_unpublished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    """Not even the overflow's: the requests go on, and another process still reads whole lines only."""
    accounting = RequestAccounting(Slab(str(tmp_path / "1.slab")))
    write = os.write

    def short(file: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:written])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        count(accounting)
    count(accounting)
    assert accounting.in_flight == 0
    reader = SlabReader(str(tmp_path / "1.slab"))
    reader.refresh_keys()
    assert reader.keys == []
    moved = Slab()
    accounting.move_to(moved)
    count(accounting)
    assert read_totals(moved).requests[KEY] == 1
