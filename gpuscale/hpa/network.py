"""NetworkPolicy: who may ask a pod for its metrics."""

from __future__ import annotations

from gpuscale.hpa.emit import Because, Manifest
from gpuscale.hpa.operator import MONITORED_LABEL
from gpuscale.hpa.specification import Specification

_APP = "Everybody may use the service itself; probes come from the node and need no rule."
_METRICS = "Only Prometheus, wherever it runs, may ask for metrics."


def network_policy(specification: Specification, app_port: int = 80) -> Manifest:
    """Port 9445 for Prometheus' pods only, the app's port for everybody."""
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": specification.metadata("gpuscale-metrics"),
        "spec": {
            "podSelector": {"matchLabels": dict(MONITORED_LABEL)},
            "policyTypes": ["Ingress"],
            "ingress": [
                Because(_APP, {"ports": [{"port": app_port}]}),
                Because(_METRICS, {"from": [prometheus], "ports": [{"port": specification.port}]}),
            ],
        },
    }
