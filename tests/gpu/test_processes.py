"""Whose processes the driver lists: this container's, the host's, or nobody's that can be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuscale.gpu.processes import INITIAL_PID_NAMESPACE, own_memory

GIB = 1 << 30


class Proc:
    """A /proc with processes and their cgroups."""

    def __init__(self, root: Path, namespace: str = "pid:[4026532000]") -> None:
        self.root = root
        (root / "self/ns").mkdir(parents=True)
        (root / "self/ns/pid").symlink_to(namespace)
        (root / "self/cgroup").write_text("0::/pod/app\n")

    def add(self, *pids: int, cgroup: str = "0::/pod/app\n") -> Proc:
        for pid in pids:
            (self.root / str(pid)).mkdir()
            (self.root / str(pid) / "cgroup").write_text(cgroup)
        return self


def test_in_a_container_the_processes_that_can_be_seen_are_ours(tmp_path: Path) -> None:
    proc = Proc(tmp_path).add(7, 8)
    assert own_memory([(7, GIB), (8, 2 * GIB)], tmp_path) == 3 * GIB
    assert own_memory([(7, GIB), (7, GIB)], tmp_path) == GIB, "one process, listed as compute and as graphics"
    proc.add(9, cgroup="0::/another\n")  # of the pod's other container, in a process namespace that is shared
    assert own_memory([(7, GIB), (9, GIB)], tmp_path) == 2 * GIB


@pytest.mark.parametrize(
    "entries",
    [
        [],  # nobody, or a driver that hides its list
        [(4711, GIB)],  # the host's PIDs
        [(7, GIB), (4711, GIB)],  # the host's, of which one happens to be a number here too
        [(7, None)],  # a driver that lists without memory
    ],
)
def test_what_cannot_be_told_is_absent(tmp_path: Path, entries: list[tuple[int, int | None]]) -> None:
    Proc(tmp_path).add(7, 8)
    assert own_memory(entries, tmp_path) is None


def test_in_the_hosts_namespace_those_of_our_cgroup_are_ours(tmp_path: Path) -> None:
    Proc(tmp_path, INITIAL_PID_NAMESPACE).add(7, 8).add(9, cgroup="0::/another\n")
    assert own_memory([(7, GIB), (9, 4 * GIB)], tmp_path) == GIB
    assert own_memory([(8, GIB), (4711, GIB)], tmp_path) == GIB, "one that ended meanwhile"
    assert own_memory([(9, 4 * GIB)], tmp_path) == 0, "the driver told of all, and none is ours"
    assert own_memory([(4711, GIB)], tmp_path) is None
