"""Prometheus' rules: the series that the metrics APIs serve, and the alerts."""

from __future__ import annotations

from typing import Any

from gpuscale.catalogue import INFO, UP
from gpuscale.hpa.api_metrics import (
    API_METRICS,
    IN_FLIGHT_RATE,
    IN_FLIGHT_RATE_EXPRESSION,
    IN_FLIGHT_SCRAPED,
    IN_FLIGHT_SCRAPED_EXPRESSION,
    INTERVAL,
    REQUESTS_IN_FLIGHT_CURRENT,
    WATCHED,
    with_deployment,
)
from gpuscale.hpa.emit import Because, Manifest

_WATCHED_WHY = """\
How long this Prometheus has been looking. The rates below are absent until it has looked for a whole window:
after it was away they would read too low, and an HPA would take that for idleness."""
_SCRAPED_WHY = """\
What was measured: while scrapes fail, the rate falls within a minute as if the load did. The metric below holds
this for a pod that cannot be scraped, for 15 minutes."""


def recording_group() -> Manifest:
    """The recording rules, in the order that their evaluation needs."""
    rules: list[Any] = [Because(_WATCHED_WHY, {"record": WATCHED, "expr": "vector(1)"})]
    for metric in API_METRICS:
        expression = with_deployment(metric.expression)
        if metric is REQUESTS_IN_FLIGHT_CURRENT:
            rules.append({"record": IN_FLIGHT_RATE, "expr": with_deployment(IN_FLIGHT_RATE_EXPRESSION)})
            rules.append(Because(_SCRAPED_WHY, {"record": IN_FLIGHT_SCRAPED, "expr": IN_FLIGHT_SCRAPED_EXPRESSION}))
            expression = metric.expression  # has the label from the rules above
        rules.append(Because(metric.help, {"record": metric.recorded, "expr": expression}))
    return {"name": "gpuscale", "interval": INTERVAL, "rules": rules}


_OURS = (
    "and on (namespace, horizontalpodautoscaler) kube_horizontalpodautoscaler_spec_target_metric{\n"
    f'  metric_name=~"{"|".join(metric.name for metric in API_METRICS)}|s[0-9]+-prometheus"\n}}'
)


def alert_group() -> Manifest:
    """The alerts. Those on HPAs read kube-state-metrics' series and stay silent where it is not installed."""
    return {
        "name": "gpuscale-alerts",
        "rules": [
            _alert(
                "GpuscaleGpuLost",
                f"{UP.name} == 0",
                "1m",
                "critical",
                "GPU {{ $labels.uuid }} of {{ $labels.namespace }}/{{ $labels.pod }} cannot be read",
                "The driver has given no reading for a minute. Pod and node: kubectl describe pod; the reason: "
                "gpuscale_gpu_read_errors_total by reason. A lost GPU (GPU_IS_LOST, Xid 79) needs its node reset.",
            ),
            _alert(
                "GpuscaleMetricsMissing",
                "min by (namespace, pod) (up) == 0\n"
                f"and on (namespace, pod) count by (namespace, pod) (count_over_time({INFO.name}[1h]))",
                "2m",
                "warning",
                "{{ $labels.namespace }}/{{ $labels.pod }} has published metrics and cannot be scraped any more",
                "Its requests in flight are held at their last value for 15 minutes. A NetworkPolicy, the endpoint's "
                "process or the node: ask the pod itself on port 9445.",
            ),
            _alert(
                "GpuscaleHpaAtMaximum",
                "kube_horizontalpodautoscaler_status_current_replicas\n"
                f">= on (namespace, horizontalpodautoscaler) kube_horizontalpodautoscaler_spec_max_replicas\n{_OURS}",
                "10m",
                "warning",
                "{{ $labels.namespace }}/{{ $labels.horizontalpodautoscaler }} has been at its maximum for 10 minutes",
                "It would add pods if it were allowed: raise maxReplicas, or the target.",
            ),
            _alert(
                "GpuscaleHpaUnableToScale",
                'kube_horizontalpodautoscaler_status_condition{condition=~"AbleToScale|ScalingActive",status="false"}'
                " == 1\nunless on (namespace, horizontalpodautoscaler) "
                f"(kube_horizontalpodautoscaler_status_current_replicas == 0)\n{_OURS}",
                "3m",
                "critical",
                "{{ $labels.namespace }}/{{ $labels.horizontalpodautoscaler }} cannot scale: "
                "{{ $labels.condition }} is false",
                "kubectl describe hpa names the reason; docs/kubernetes.md has the cause of each.",
            ),
        ],
    }


def _alert(name: str, expression: str, lasting: str, severity: str, summary: str, remedy: str) -> Manifest:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": remedy},
    }


def rule_file() -> Manifest:
    """The whole of a Prometheus rule file."""
    return {"groups": [recording_group(), alert_group()]}
