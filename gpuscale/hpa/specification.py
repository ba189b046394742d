"""What a person wants scaled, by which signal and how far: the one value that every manifest is made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpuscale.errors import ConfigurationError
from gpuscale.hpa.api_metrics import (
    DUTY_CYCLE_CURRENT,
    LONGEST_DEPLOYMENT,
    MEMORY_USED_CURRENT,
    REQUESTS_IN_FLIGHT_CURRENT,
    ApiMetric,
)
from gpuscale.settings import DEFAULT_PORT

Signal = Literal["duty-cycle", "requests-in-flight", "memory"]
SIGNALS: dict[str, ApiMetric] = {
    "duty-cycle": DUTY_CYCLE_CURRENT,
    "requests-in-flight": REQUESTS_IN_FLIGHT_CURRENT,
    "memory": MEMORY_USED_CURRENT,
}
SIDECARS = ("shared-process-namespace", "dra")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|[MGTPE]|[KMGTPE]i)?\Z")


@dataclass(frozen=True)
class Specification:
    """One autoscaled Deployment. Raises ConfigurationError, naming the option and the remedy, for what cannot be."""

    deployment: str
    signal: str = "duty-cycle"
    target: str = "20"
    """Per pod, as a Kubernetes quantity: percent, requests or bytes (``20``, ``500m``, ``20Gi``)."""
    minimum: int = 1
    maximum: int = 10
    name: str | None = None
    """Of the HPA or ScaledObject; the Deployment's by default."""
    namespace: str | None = None
    """Left out of the manifests when None; ``default`` in the queries, which cannot do without."""
    duty_cycle_limit: int | None = 80
    """Second metric beside ``requests-in-flight``: percent that a pod's GPUs may be busy. None leaves it out."""
    counted_by: str | None = None
    """Another Deployment, the gateway in front of this one, whose requests in flight are taken."""
    sidecar: str | None = None
    """``shared-process-namespace`` or ``dra``: how a sidecar sees the GPUs of the container that it watches."""
    prometheus: str = "http://prometheus.monitoring:9090"
    """Where KEDA finds Prometheus."""
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        _name("--deployment", self.deployment)
        for option, value in (("--name", self.name), ("--namespace", self.namespace)):
            if value is not None:
                _name(option, value)
        if self.counted_by is not None:
            _name("--counted-by", self.counted_by)
        if self.signal not in SIGNALS:
            raise ConfigurationError(f"--signal must be one of {', '.join(SIGNALS)}, not {self.signal!r}")
        if self.sidecar is not None and self.sidecar not in SIDECARS:
            raise ConfigurationError(f"--sidecar must be one of {', '.join(SIDECARS)}, not {self.sidecar!r}")
        quantity = _QUANTITY.match(self.target)
        if quantity is None or float(quantity[1]) == 0:
            raise ConfigurationError(
                f"--target must be a positive quantity such as 20, 500m or 20Gi, not {self.target!r}"
            )
        self._check_range()

    def _check_range(self) -> None:
        if self.maximum < 1:
            raise ConfigurationError(f"--max must be at least 1, not {self.maximum}")
        if not 0 <= self.minimum <= self.maximum:
            raise ConfigurationError(f"--min must be from 0 to --max ({self.maximum}), not {self.minimum}")
        if self.counted_by is not None and self.signal != "requests-in-flight":
            raise ConfigurationError("--counted-by goes with --signal requests-in-flight only")
        if self.counted_by == self.deployment:
            raise ConfigurationError("--counted-by must name another Deployment than --deployment")
        if self.minimum == 0 and self.counted_by is None:
            raise ConfigurationError(
                "--min 0 needs --signal requests-in-flight and --counted-by GATEWAY: a Deployment without a pod "
                "publishes nothing that could wake it, so its requests must be counted in front of it"
            )
        limit = self.duty_cycle_limit
        if limit is not None and not 1 <= limit <= 100:
            raise ConfigurationError(f"--duty-cycle-limit must be a percentage from 1 to 100, not {limit}")

    @property
    def metric(self) -> ApiMetric:
        """The signal's metric on the metrics APIs."""
        return SIGNALS[self.signal]

    @property
    def scaler_name(self) -> str:
        """The name of the HPA or ScaledObject."""
        return self.name or self.deployment

    @property
    def second_metric(self) -> ApiMetric | None:
        """The duty cycle beside the requests, unless the Deployment may have no pod to measure it on."""
        wanted = self.signal == "requests-in-flight" and self.minimum > 0 and self.duty_cycle_limit is not None
        return DUTY_CYCLE_CURRENT if wanted else None

    @property
    def counted_deployment(self) -> str:
        """The Deployment over whose pods requests are counted."""
        return self.counted_by or self.deployment

    def metadata(self, name: str, **extra: object) -> dict[str, object]:
        """A manifest's metadata, with the namespace only where one was given."""
        return {"name": name, **({"namespace": self.namespace} if self.namespace else {}), **extra}


def _name(option: str, value: str) -> None:
    if not _NAME.match(value) or len(value) > LONGEST_DEPLOYMENT:
        raise ConfigurationError(
            f"{option} must be a Kubernetes name of at most {LONGEST_DEPLOYMENT} small letters, digits and dashes "
            f"(with more, Kubernetes cuts the pods' names and they cannot be told apart), not {value!r}"
        )
