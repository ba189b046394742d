"""``python -m bert_intent``: the service behind uvicorn."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from types import FrameType

from bert_intent.series import MULTIPROCESS
from bert_intent.settings import ServiceSettings, SettingsError

FLAGS = ("model", "device", "threads", "max_batch", "queue_limit", "drain_seconds", "grace_seconds", "workers",
         "host", "port")  # fmt: skip
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu")
"""Of the NVIDIA driver on servers, on WSL, on Jetson."""
USAGE_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Exit status: 0 after either, 1 when the model cannot be loaded, 2 wrong usage."""
    flags = _parser().parse_args(arguments)
    # Flags win over the environment, which is how they also reach the workers.
    for name in FLAGS:
        if getattr(flags, name) is not None:
            os.environ[f"BERT_{name.upper()}"] = getattr(flags, name)
    try:
        settings = ServiceSettings.from_environment()
    except SettingsError as error:
        print(f"bert_intent: {error}", file=sys.stderr)
        return USAGE_ERROR
    for line in first_lines(settings, os.environ, flags.simulate_without_gpu):
        print(line, flush=True)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    # Waiting threads of a forward pass that spin would take the CPU from the event loop.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if settings.workers > 1 and MULTIPROCESS not in os.environ:
        with tempfile.TemporaryDirectory(prefix="bert-intent-") as folder:
            os.environ[MULTIPROCESS] = folder
            return serve(settings)
    return serve(settings)


def first_lines(settings: ServiceSettings, environ: MutableMapping[str, str], simulate_without_gpu: bool) -> list[str]:
    """What a person must know first. Chooses GPUSCALE_GPU=simulated when that was allowed and there is no driver."""
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    lines = [f'The service starts; ask it: curl "http://{shown}:{settings.port}/predict?query=music"']
    driver = any(Path(path).exists() for path in DRIVER_FILES)
    if simulate_without_gpu and not driver and not environ.get("GPUSCALE_GPU"):
        environ["GPUSCALE_GPU"] = "simulated"
    if environ.get("GPUSCALE_GPU") == "simulated":
        lines.append("GPU series are SIMULATED: they follow this process's own CPU time (GPUSCALE_GPU=simulated).")
    elif not driver and environ.get("GPUSCALE_GPU", "nvml") == "nvml":
        lines.append("No NVIDIA driver here: nvidia_gpu_num_devices is 0. GPUSCALE_GPU=simulated shows a made-up GPU.")
    return lines


def serve(settings: ServiceSettings) -> int:
    """Run uvicorn until it ends; returns the exit status."""
    import uvicorn

    from bert_intent.service import check_options, create_app
    from gpuscale import ConfigurationError

    signal.signal(signal.SIGTERM, _exit)
    several = settings.workers > 1
    try:
        # Workers make the app themselves; what is wrong for one is wrong for all, and said here once.
        check_options()
        app = None if several else create_app(settings)
    except ConfigurationError as error:
        print(f"bert_intent: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        uvicorn.run(
            app or "bert_intent.service:create_app",
            factory=app is None,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            access_log=False,
            timeout_graceful_shutdown=max(1, int(settings.grace_seconds - settings.drain_seconds) - 1),
        )
    except SystemExit as end:
        # uvicorn raises its SIGTERM anew when all is done, and _exit makes it this.
        if end.code:
            return int(end.code)
    except KeyboardInterrupt:
        pass
    return 1 if app is not None and app.state.service.lifecycle.failed else 0


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bert_intent",
        description="BERT intent detection over HTTP. Each option is also a variable: --queue-limit, BERT_QUEUE_LIMIT.",
    )
    defaults = ServiceSettings()
    for name in FLAGS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, metavar="VALUE", help=f"default {getattr(defaults, name)}")
    parser.add_argument(
        "--simulate-without-gpu",
        action="store_true",
        help="without an NVIDIA driver, show a simulated GPU that follows this process's own CPU time",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
