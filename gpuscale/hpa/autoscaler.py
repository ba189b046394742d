"""The HorizontalPodAutoscaler."""

from __future__ import annotations

from typing import Any

from gpuscale.hpa.api_metrics import ApiMetric
from gpuscale.hpa.emit import Because, Manifest
from gpuscale.hpa.specification import Specification

_UP = """\
Up at once: the signal is a mean over a minute already, and a model takes its time to load. At most double,
or 4 pods, in 15 s: then the first new pods have begun to show in the metric."""
_DOWN = """\
Down by one pod a minute, to the highest number wanted in the last 5: each step shows in the metric, which looks
back a minute, before the next, and a pod that goes cannot be had back before its model is loaded."""
_ONLY_UP = """\
Never down: caching allocators (PyTorch, TensorFlow, vLLM) do not give memory back, so low memory is no sign of
low load, and high memory would hold the pods for ever anyhow."""
_TOTAL = """\
The total over all pods, divided by their number here: pods that still load their model dilute nothing and hold
nothing back, and while one pod's figures are missing it counts with its last."""
_SECOND = """\
A second opinion; the higher of the two counts. A pod whose GPUs are this busy has nothing left for a peak even
if its requests are few and long. While it cannot be read, pods are added by the first and none are taken away."""
_ZERO = """\
Needs the feature gate HPAScaleToZero. What wakes a Deployment without a pod is counted elsewhere: in the gateway
named below, which must hold a request until a pod is there. Its own metrics cannot: there is none to ask."""


def autoscaler(specification: Specification) -> Manifest:
    """The HPA of autoscaling/v2: pods by duty cycle or memory, or by the total of requests in flight."""
    minimum: Any = specification.minimum
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": specification.metadata(specification.scaler_name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": specification.deployment},
            "minReplicas": Because(_ZERO, minimum) if minimum == 0 else minimum,
            "maxReplicas": specification.maximum,
            "metrics": _metrics(specification),
            **_behavior(specification),
        },
    }


def _metrics(specification: Specification) -> list[Any]:
    if specification.signal != "requests-in-flight":
        return [_pods(specification.metric, specification.target)]
    selector = {"matchLabels": {"deployment": specification.counted_deployment}}
    metrics: list[Any] = [
        Because(
            _TOTAL,
            {
                "type": "External",
                "external": {
                    "metric": {"name": specification.metric.name, "selector": selector},
                    "target": {"type": "AverageValue", "averageValue": specification.target},
                },
            },
        )
    ]
    if specification.second_metric is not None:
        second = _pods(specification.second_metric, str(specification.duty_cycle_limit))
        metrics.append(Because(_SECOND, second))
    return metrics


def _pods(metric: ApiMetric, target: str) -> Manifest:
    return {
        "type": "Pods",
        "pods": {"metric": {"name": metric.name}, "target": {"type": "AverageValue", "averageValue": target}},
    }


def _behavior(specification: Specification) -> Manifest:
    """The signal's own; for the duty cycle Kubernetes' defaults, as every tutorial has it."""
    rules = behavior(specification)
    return {"behavior": rules} if rules else {}


def behavior(specification: Specification) -> Manifest:
    """What KEDA, too, hands to its HPA."""
    if specification.signal == "memory":
        return {"scaleDown": Because(_ONLY_UP, {"selectPolicy": "Disabled"})}
    if specification.signal == "duty-cycle":
        return {}
    up = [{"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]
    return {
        "scaleUp": Because(_UP, {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": up}),
        "scaleDown": Because(
            _DOWN,
            {
                "stabilizationWindowSeconds": 300,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
            },
        ),
    }
