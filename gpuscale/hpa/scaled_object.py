"""KEDA's ScaledObject, which scales by the same series as the HPA beside the adapter does."""

from __future__ import annotations

from typing import Any

from gpuscale.hpa.api_metrics import DUTY_CYCLE_CURRENT, ApiMetric
from gpuscale.hpa.autoscaler import behavior
from gpuscale.hpa.emit import Because, Manifest
from gpuscale.hpa.specification import Specification

_FALLBACK = """\
While Prometheus does not answer or has no such series, the number of pods stays as it is."""
_NO_NULLS = "KEDA's default takes an empty answer, which an outage gives too, for 0 and scales down."
_MEAN = """\
A mean over the pods that can be read, as an HPA has it of a Pods metric: Value, since AverageValue would divide
it by the pods once more, and the sum that it wants reads too low when one pod's figures are missing."""


def scaled_object(specification: Specification) -> Manifest:
    """The ScaledObject of keda.sh/v1alpha1 with the same range, targets and behaviour as the HPA."""
    rules = behavior(specification)
    advanced = {"advanced": {"horizontalPodAutoscalerConfig": {"behavior": rules}}} if rules else {}
    triggers = [_trigger(specification, specification.metric, specification.target)]
    if specification.second_metric is not None:
        triggers.append(_trigger(specification, DUTY_CYCLE_CURRENT, str(specification.duty_cycle_limit)))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": specification.metadata(specification.scaler_name),
        "spec": {
            "scaleTargetRef": {"name": specification.deployment},
            "minReplicaCount": specification.minimum,
            "maxReplicaCount": specification.maximum,
            "pollingInterval": 15,
            "cooldownPeriod": 300,
            "fallback": Because(
                _FALLBACK,
                {
                    "failureThreshold": 1,
                    "replicas": max(1, specification.minimum),
                    "behavior": "currentReplicasIfHigher",
                },
            ),
            **advanced,
            "triggers": triggers,
        },
    }


def query(specification: Specification, metric: ApiMetric) -> str:
    """The metric over the pods that are counted, in PromQL."""
    namespace = specification.namespace or "default"
    # A Pods metric is the mean over the pods, whatever the external metric of that name does.
    over_pods = "sum" if metric is specification.metric and _is_total(specification) else "avg"
    deployment = specification.counted_deployment
    return f'{over_pods}({metric.recorded}{{namespace="{namespace}",deployment="{deployment}"}})'


def _is_total(specification: Specification) -> bool:
    return specification.signal == "requests-in-flight"


def _trigger(specification: Specification, metric: ApiMetric, target: str) -> Manifest:
    total = metric is specification.metric and _is_total(specification)
    metric_type: Any = "AverageValue" if total else Because(_MEAN, "Value")
    return {
        "type": "prometheus",
        "name": metric.name.replace("_", "-"),
        "metricType": metric_type,
        "metadata": {
            "serverAddress": specification.prometheus,
            "query": query(specification, metric),
            "threshold": _number(target),
            "ignoreNullValues": Because(_NO_NULLS, "false"),
        },
    }


_FACTORS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)
}


def _number(quantity: str) -> str:
    """A Kubernetes quantity as the plain number that KEDA reads a threshold as."""
    digits = quantity.rstrip("mkKMGTPEi")
    value = float(digits) * _FACTORS.get(quantity[len(digits) :], 1.0)
    return f"{value:.3f}".rstrip("0").rstrip(".")
