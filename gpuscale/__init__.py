"""GPU and request metrics that make inference services scale themselves on Kubernetes.

>>> metrics = gpuscale.instrument(app)      # any ASGI or WSGI app

Importing this package loads nothing but itself: no prometheus_client, no driver, no thread, no socket.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for True; typing itself would cost more than all the rest
if TYPE_CHECKING:
    from typing import Any

    from gpuscale import asgi, wsgi
    from gpuscale.errors import ConfigurationError, GpuscaleError, MissingExtraError, SourceUnavailableError
    from gpuscale.gpu.reading import GpuIdentity, GpuReading, GpuSnapshot
    from gpuscale.mounting import Metrics, instrument

__version__ = "0.1.0"

_HOMES = {
    "ConfigurationError": "gpuscale.errors",
    "GpuIdentity": "gpuscale.gpu.reading",
    "GpuReading": "gpuscale.gpu.reading",
    "GpuSnapshot": "gpuscale.gpu.reading",
    "GpuscaleError": "gpuscale.errors",
    "Metrics": "gpuscale.mounting",
    "MissingExtraError": "gpuscale.errors",
    "SourceUnavailableError": "gpuscale.errors",
    "instrument": "gpuscale.mounting",
}
_MODULES = ("asgi", "wsgi")

__all__ = [
    "ConfigurationError",
    "GpuIdentity",
    "GpuReading",
    "GpuSnapshot",
    "GpuscaleError",
    "Metrics",
    "MissingExtraError",
    "SourceUnavailableError",
    "__version__",
    "asgi",
    "instrument",
    "wsgi",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"gpuscale.{name}")
    else:
        raise AttributeError(f"module 'gpuscale' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
