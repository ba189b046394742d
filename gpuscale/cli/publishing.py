"""The options that ``sidecar`` and ``run`` have in common. Each can come from its ``GPUSCALE_*`` variable too."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from gpuscale.errors import ConfigurationError
from gpuscale.settings import DEFAULT_PORT, GPU_SOURCES, Settings
from gpuscale.sidecar.logs import FORMATS, LEVELS

if TYPE_CHECKING:
    from gpuscale.sidecar.proxy import Proxy

DEFAULT_GRACE = 25.0
"""Seconds for requests to end: less than the 30 that Kubernetes gives a pod by default."""
MOST_GRACE = 86400.0

_SETTINGS = (
    "port", "address", "gpu", "gpu_interval", "gpu_staleness", "gpu_window", "excluded_paths", "buckets",
    "tls_cert", "tls_key", "token_file",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; none has a default here, so that the environment's can be told from a given one."""
    endpoint = parser.add_argument_group("endpoint")
    endpoint.add_argument("--port", metavar="N", help=f"of the metrics (default {DEFAULT_PORT}; 0: a free one)")
    endpoint.add_argument("--address", metavar="IP", help="to listen on (default 0.0.0.0)")
    endpoint.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this PEM certificate chain")
    endpoint.add_argument("--tls-key", metavar="FILE", help="and its key; both are read again when they change")
    endpoint.add_argument("--token-file", metavar="FILE", help="want the bearer token in this file")
    gpus = parser.add_argument_group("GPUs")
    gpus.add_argument("--gpu", choices=GPU_SOURCES, help="where readings come from (default nvml)")
    gpus.add_argument("--gpu-interval", metavar="SECONDS", help="between readings (default 1)")
    gpus.add_argument("--gpu-staleness", metavar="SECONDS", help="until old values are dropped (default 10)")
    gpus.add_argument("--gpu-window", metavar="SECONDS", help="of nvidia_gpu_duty_cycle's mean (default 10)")
    proxy = parser.add_argument_group("requests")
    proxy.add_argument(
        "--proxy",
        metavar="LISTEN:HOST:PORT",
        help="forward HTTP/1.1 from port LISTEN to the app and count the requests (needs gpuscale[proxy])",
    )
    proxy.add_argument(
        "--route",
        metavar="PATH",
        action="append",
        help="a value of the label route: a path, or a prefix such as /v1/*; may be given again",
    )
    proxy.add_argument("--excluded-paths", metavar="PATHS", help="not counted, joined by commas (health probes)")
    proxy.add_argument("--buckets", metavar="SECONDS", help="of the duration histogram, joined by commas")
    proxy.add_argument(
        "--grace", metavar="SECONDS", help=f"for requests to end after SIGTERM (default {DEFAULT_GRACE:.0f})"
    )
    logs = parser.add_argument_group("logs")
    logs.add_argument("--log-format", choices=FORMATS, help="of the lines on stderr (default logfmt)")
    logs.add_argument("--log-level", choices=LEVELS, help="(default info)")


def settings(options: argparse.Namespace) -> Settings:
    """From the options and the environment. Raises ConfigurationError."""
    return Settings.create(**{name: getattr(options, name) for name in _SETTINGS})


def proxy(options: argparse.Namespace, chosen: Settings) -> Proxy | None:
    """The proxy that was asked for. Raises ConfigurationError and MissingExtraError."""
    text = options.proxy or os.environ.get("GPUSCALE_PROXY")
    if not text:
        return None
    from gpuscale.sidecar.proxy import Proxy, ProxyPlan

    routes = options.route or os.environ.get("GPUSCALE_ROUTES", "").split(",")
    return Proxy(ProxyPlan.parse(text), chosen, tuple(route.strip() for route in routes if route.strip()))


def grace(options: argparse.Namespace) -> float:
    """Seconds. Raises ConfigurationError."""
    text = options.grace or os.environ.get("GPUSCALE_GRACE") or DEFAULT_GRACE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_GRACE:
        raise ConfigurationError(f"--grace (GPUSCALE_GRACE) must be a number of seconds, not {text!r}")
    return seconds


def configure_logs(options: argparse.Namespace) -> None:
    """Raises ConfigurationError for a wrong variable."""
    from gpuscale.sidecar import logs

    form = options.log_format or os.environ.get("GPUSCALE_LOG_FORMAT") or "logfmt"
    level = options.log_level or os.environ.get("GPUSCALE_LOG_LEVEL") or "info"
    for variable, value, known in (
        ("GPUSCALE_LOG_FORMAT", form, FORMATS),
        ("GPUSCALE_LOG_LEVEL", level, LEVELS),
    ):
        if value not in known:
            raise ConfigurationError(f"{variable} must be one of {', '.join(known)}, not {value!r}")
    logs.configure(level, form)
