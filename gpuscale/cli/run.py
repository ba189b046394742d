"""Start a command and publish its GPUs, and with --proxy its requests, beside it.

    gpuscale run --proxy 8000:127.0.0.1:80 -- python serve.py

For one container with no Python to change. Signals are passed on to the command (SIGTERM once the proxy's requests
have ended), its exit status becomes ours (128 + n after signal n; 127 not found, 126 not executable), and as
PID 1 of a container the orphaned processes are collected.
"""

from __future__ import annotations

import argparse
import sys

from gpuscale.cli import publishing
from gpuscale.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    publishing.add_arguments(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to start")


def run(options: argparse.Namespace) -> int:
    """Run the command to its end. Does not return once it was started: the process ends with its status."""
    from gpuscale.gpu.source import create_source
    from gpuscale.sidecar import child, footprint, signals
    from gpuscale.sidecar.service import Sidecar, leave

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ConfigurationError("the command is missing: gpuscale run [options] -- COMMAND ...")
    publishing.configure_logs(options)
    chosen = publishing.settings(options)
    seconds = publishing.grace(options)
    proxy = publishing.proxy(options, chosen)
    sidecar = Sidecar(chosen, create_source(chosen.gpu), proxy)
    signals.block(child.WAITED)
    footprint.few_arenas()
    try:
        sidecar.start()
        running = child.Child(command)
    except child.CommandError as error:
        sidecar.close()
        print(f"gpuscale run: {error}", file=sys.stderr)
        leave(error.status)
    except BaseException:
        sidecar.close()
        raise
    footprint.settle()
    status = child.supervise(running, (lambda: sidecar.drain(seconds)) if proxy else None)
    sidecar.close()
    leave(status)
    return status
