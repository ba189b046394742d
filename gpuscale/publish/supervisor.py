"""Which processes belong together: the supervisor of a pre-fork or multi-process server, found at run time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType


def process_identity(pid: int | None = None) -> str:
    """``PID-START``, with the start in clock ticks after boot: process IDs are used again, these are not."""
    pid = os.getpid() if pid is None else pid
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The command's name (field 2) is in parentheses and may hold anything; the start is field 22.
            start = file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        start = "0"
    return f"{pid}-{start}"


def supervisor_of() -> str:
    """The identity of the process that starts and replaces this one's siblings; its own where it stands alone."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return process_identity(os.getppid())  # uvicorn --workers, hypercorn, granian
    if "gunicorn.arbiter" in sys.modules or "uwsgi" in sys.modules:
        return process_identity(os.getppid())  # nothing is started in the master itself: see below
    return process_identity()


def is_prefork_master() -> bool:
    """Whether the app is being loaded by a master that forks its workers later (gunicorn --preload, uWSGI).

    Nothing must be started there: threads do not survive the fork, and the master serves no request. gunicorn
    tells by the stack: a worker that loads the app does so from a function of ``gunicorn.workers``.
    """
    if "uwsgi" in sys.modules:
        return True
    if "gunicorn.arbiter" not in sys.modules:
        return False
    return not any(name.startswith("gunicorn.workers") for name in _modules_on_the_stack())


def _modules_on_the_stack() -> Iterator[str]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
