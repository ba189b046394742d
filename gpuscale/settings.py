"""The options of the library: one frozen value, checked at construction, with ``GPUSCALE_*`` as defaults."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gpuscale.catalogue import DEFAULT_BUCKETS
from gpuscale.errors import ConfigurationError

DEFAULT_PORT = 9445
METRICS_PATHS = ("/metrics", "/metrics/")
DEFAULT_EXCLUDED_PATHS = (
    "/healthz", "/readyz", "/livez", "/health", "/ready", "/live", "/startupz", *METRICS_PATHS,
)  # fmt: skip
GPU_SOURCES = ("nvml", "simulated", "none")

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Everything that a person can choose. ``Settings.create`` fills gaps from the environment."""

    port: int = DEFAULT_PORT
    """Of the metrics endpoint; 0 takes a free one (then workers do not share). With ``on_app`` it only tells this
    service's numbers from those of another one on the machine."""
    address: str = "0.0.0.0"
    gpu: str = "nvml"
    """``nvml``, ``simulated`` (chosen only explicitly) or ``none``."""
    excluded_paths: tuple[str, ...] = DEFAULT_EXCLUDED_PATHS
    """Requests to exactly these paths are not counted: probes would hold up an idle service."""
    buckets: tuple[float, ...] = DEFAULT_BUCKETS
    """Upper bounds of the duration histogram in seconds, ascending, without +Inf."""
    on_app: bool = False
    """Serve ``/metrics`` on the app's own port and open no other. A scrape is never counted there."""
    run_dir: str | None = None
    """Folder that the workers of one pod share, with a folder per port in it; by default in memory, per user."""
    gpu_interval: float = 1.0
    """Seconds between readings; the driver's sample ring holds about 10 s."""
    gpu_staleness: float = 10.0
    """Seconds after which the last reading's values are dropped."""
    gpu_window: float = 10.0
    """Seconds over which ``nvidia_gpu_duty_cycle`` is the mean."""
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    """File with the bearer token that a scraper must send."""

    handover_dir: str | None = None
    """Folder (an emptyDir) where the UUIDs of this pod's GPUs are left for a sidecar."""

    @classmethod
    def create(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
        """Options that are not ``None`` win over ``GPUSCALE_<OPTION>``, which win over the defaults.

        Raises ConfigurationError, naming the option or variable, for a value that cannot be.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for name, parse in _PARSERS.items():
            given = options.pop(name, None)
            variable = f"GPUSCALE_{name.upper()}"
            if given is not None:
                values[name] = parse(name, given)
            elif environ.get(variable, "") != "":
                values[name] = parse(variable, environ[variable])
        unknown = [name for name in options if name not in _PARSERS]
        if unknown:
            raise ConfigurationError(f"unknown option {unknown[0]!r}; there are: {', '.join(_PARSERS)}")
        settings = cls(**values)
        if bool(settings.tls_cert) != bool(settings.tls_key):
            raise ConfigurationError("tls_cert and tls_key (GPUSCALE_TLS_CERT, GPUSCALE_TLS_KEY) go together")
        if settings.gpu_interval > settings.gpu_staleness:
            raise ConfigurationError(
                f"gpu_interval ({settings.gpu_interval:g} s) must not be longer than gpu_staleness "
                f"({settings.gpu_staleness:g} s), or values would come and go: shorten the one or lengthen the other"
            )
        if settings.on_app and (settings.tls_cert or settings.token_file):
            raise ConfigurationError("tls_cert and token_file protect the metrics port; on_app opens none: drop one")
        if settings.on_app:
            paths = dict.fromkeys((*settings.excluded_paths, *METRICS_PATHS))
            return replace(settings, excluded_paths=tuple(paths))
        return settings

    def require(self, others: Settings) -> None:
        """Raise ConfigurationError, naming the option, for ``others`` than these, which the port has already."""
        for name, value in self.__dict__.items():
            other = getattr(others, name)
            if other != value:
                raise ConfigurationError(
                    f"{name}={other!r}: port {self.port} is published already with {value!r}; use the same options, "
                    "or another port"
                )


def endpoint_url(address: str, port: int, *, tls: bool) -> str:
    """Where this machine reaches ``/metrics`` of an endpoint that listens on ``address``."""
    listening = ipaddress.ip_address(address)
    if listening.is_unspecified:
        listening = ipaddress.ip_address("127.0.0.1")  # a socket on :: takes IPv4 too
    host = f"[{listening}]" if listening.version == 6 else str(listening)
    return f"{'https' if tls else 'http'}://{host}:{port}/metrics"


def _wrong(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{name} must be {wanted}, not {value!r}")


def _number(name: str, value: object, convert: Callable[[Any], T], wanted: str) -> T:
    if isinstance(value, bool):
        raise _wrong(name, value, wanted)
    try:
        return convert(value)
    except (TypeError, ValueError):
        raise _wrong(name, value, wanted) from None


def _port(name: str, value: object) -> int:
    wanted = "a port from 0 to 65535 (0 takes a free one)"
    port = _number(name, value, int, wanted)
    if not 0 <= port <= 65535 or isinstance(value, float):
        raise _wrong(name, value, wanted)
    return port


def _address(name: str, value: object) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if value == "localhost" else str(value)))
    except ValueError:
        raise _wrong(name, value, "an IP address to listen on, such as 0.0.0.0, 127.0.0.1 or ::") from None


def _gpu(name: str, value: object) -> str:
    if value not in GPU_SOURCES:
        raise _wrong(name, value, f"one of {', '.join(GPU_SOURCES)}")
    return str(value)


def _paths(name: str, value: object) -> tuple[str, ...]:
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise _wrong(name, value, "paths such as ['/healthz'] (in the environment: joined by commas)")
    paths = tuple(path.strip() for path in paths if path.strip())
    for path in paths:
        if not path.startswith("/"):
            raise _wrong(name, path, "paths that start with /")
    return paths


def _buckets(name: str, value: object) -> tuple[float, ...]:
    wanted = "ascending positive seconds such as (0.01, 0.1, 1), at most 64"
    raw = value.split(",") if isinstance(value, str) else value
    if not isinstance(raw, Sequence):
        raise _wrong(name, value, wanted)
    bounds = tuple(_number(name, bound, float, wanted) for bound in raw)
    if bounds and bounds[-1] == float("inf"):
        bounds = bounds[:-1]
    ascending = all(low < high for low, high in zip(bounds, bounds[1:], strict=False))
    if not bounds or len(bounds) > 64 or not ascending or not 0 < bounds[0] or bounds[-1] == float("inf"):
        raise _wrong(name, value, wanted)
    return bounds


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    flags = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in flags:
        raise _wrong(name, value, "true or false")
    return flags[str(value).lower()]


def _seconds(name: str, value: object) -> float:
    wanted = "a number of seconds from 0.05 to 3600"
    seconds = _number(name, value, float, wanted)
    if not 0.05 <= seconds <= 3600:
        raise _wrong(name, value, wanted)
    return seconds


def _file(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        raise _wrong(name, value, "the path of a file that can be read")
    return str(path)


def _folder(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not os.path.isabs(path):
        raise _wrong(name, value, "an absolute path")
    return str(path)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "port": _port,
    "address": _address,
    "gpu": _gpu,
    "excluded_paths": _paths,
    "buckets": _buckets,
    "on_app": _flag,
    "run_dir": _folder,
    "gpu_interval": _seconds,
    "gpu_staleness": _seconds,
    "gpu_window": _seconds,
    "tls_cert": _file,
    "tls_key": _file,
    "token_file": _file,
    "handover_dir": _folder,
}
