"""Publish this pod's GPUs, and with --proxy its requests, beside an app that knows nothing of gpuscale.

Which GPUs are this pod's is decided by the first of these that can tell: a process namespace shared with the
app's container, a resource claim shared with it, the kubelet's pod-resources socket, UUIDs that the library left
in GPUSCALE_HANDOVER_DIR, --gpus. If none can, no GPU values are published, and the log says why.

/healthz fails when the readings have stopped or the GPU is lost for good, so that a liveness probe restarts the
container. SIGTERM lets the proxy's requests end and exits with 0.
"""

from __future__ import annotations

import argparse
import os

from gpuscale.cli import publishing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    publishing.add_arguments(parser)
    parser.add_argument(
        "--gpus", metavar="UUIDS", help="this pod's GPUs by UUID, joined by commas; all: all that NVML shows"
    )


def run(options: argparse.Namespace) -> int:
    """Publish until SIGTERM, SIGINT or SIGHUP. Does not return: the process ends here."""
    import signal

    from gpuscale.gpu.ownership import decide
    from gpuscale.gpu.source import create_source
    from gpuscale.sidecar import footprint, signals
    from gpuscale.sidecar.service import Sidecar, leave

    publishing.configure_logs(options)
    chosen = publishing.settings(options)
    seconds = publishing.grace(options)
    explicit = options.gpus or os.environ.get("GPUSCALE_GPUS")
    proxy = publishing.proxy(options, chosen)
    sidecar = Sidecar(chosen, create_source(chosen.gpu, lambda: decide(explicit)), proxy)
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signals.block(ends)
    footprint.few_arenas()
    try:
        sidecar.start()
        footprint.settle()
        signals.wait(ends)
        sidecar.drain(seconds)
    except BaseException:
        sidecar.close()
        raise
    sidecar.close()
    leave(0)
    return 0
