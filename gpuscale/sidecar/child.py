"""``gpuscale run``: a command as this process's child, with its signals, its exit status and PID 1's duties."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Sequence

from gpuscale.errors import GpuscaleError
from gpuscale.sidecar import signals

log = logging.getLogger("gpuscale.run")

FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
WAITED = (*FORWARDED, signal.SIGCHLD)
NOT_FOUND, NOT_EXECUTABLE = 127, 126
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


class CommandError(GpuscaleError):
    """The command could not be started; ``status`` is what a shell would end with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """A running command. The signals of WAITED must be blocked (:func:`signals.block`) before it starts."""

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self.pid = os.posix_spawnp(
                command[0],
                list(command),
                os.environ,
                setsigmask=[],
                setsigdef=[*WAITED, *_PYTHON_IGNORES],
            )
        except OSError as error:
            status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
            raise CommandError(status, f"{command[0]} cannot be started: {error.strerror}") from None
        self.status: int | None = None
        """Exit status, 128 + n after signal n; None while it runs."""

    def send(self, number: int) -> None:
        """Forward a signal."""
        if self.status is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def reap(self) -> None:
        """Collect every child that ended: as PID 1 the orphans of the container are ours too."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(wait_status)
                self.status = code if code >= 0 else 128 - code


def supervise(child: Child, before_end: Callable[[], None] | None = None) -> int:
    """Forward signals until the command has ended; returns its exit status.

    At the first SIGTERM ``before_end`` runs before it is passed on: the proxy lets its requests end.
    """
    terminating = False
    while child.status is None:
        arrived = signals.wait(WAITED)
        assert arrived is not None
        if arrived.number == signal.SIGCHLD:
            child.reap()
            continue
        if arrived.number == signal.SIGTERM and before_end is not None and not terminating:
            terminating = True
            before_end()
        if not arrived.from_terminal:  # else the command, being in the same group, has got it already
            log.debug("passing %s on to process %d", arrived.name, child.pid)
            child.send(arrived.number)
        child.reap()
    return child.status
