"""What the Prometheus operator reads: PodMonitor and PrometheusRule."""

from __future__ import annotations

from gpuscale.hpa.api_metrics import INTERVAL
from gpuscale.hpa.emit import Because, Manifest
from gpuscale.hpa.prometheus_rules import rule_file
from gpuscale.hpa.specification import Specification

MONITORED_LABEL = {"gpuscale.dev/metrics": "true"}
"""On every pod whose port named ``metrics`` publishes our series."""

_HONOR = """\
The target's own labels win: pod and namespace are those of the pod that was scraped, which is what the HPA asks
for. A sidecar that published such labels itself would have them renamed exported_pod."""


def pod_monitor(specification: Specification) -> Manifest:
    """Scrapes the Deployment's pods at their port ``metrics``."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": specification.metadata("gpuscale"),
        "spec": {
            "selector": {"matchLabels": dict(MONITORED_LABEL)},
            "podTargetLabels": ["app"],
            "podMetricsEndpoints": [
                {"port": "metrics", "path": "/metrics", "interval": INTERVAL, "honorLabels": Because(_HONOR, False)}
            ],
        },
    }


def prometheus_rule(specification: Specification) -> Manifest:
    """The same rules as the rule file's."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": specification.metadata("gpuscale"),
        "spec": rule_file(),
    }
