"""The Prometheus operator picks our PodMonitor and PrometheusRule up: series as the HPA wants them, and an alert."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from tests.e2e import pods, waiting
from tests.e2e.kube import kubectl, prometheus, wait_for
from tests.e2e.service import Service
from tests.e2e.setting import add


def test_operator(service: Service) -> None:
    add("prometheus-operator", "podmonitors.monitoring.coreos.com")
    app = waiting.apply(service, scaler=None, gpu=False)
    pods.apply(service, *_prometheus(service.namespace))
    kubectl("apply", "-n", service.namespace, "-k", str(service.root / "k8s/operator"))
    kubectl(
        "wait", "-n", service.namespace, "prometheus/main", "--for=condition=Available", "--timeout=180s", timeout=200
    )

    def ask(query: str) -> list[dict[str, Any]]:
        return prometheus(query, f"{service.namespace}/pods/prometheus-main-0:9090")

    expected = {"namespace": service.namespace, "pod": app, "app": waiting.NAME, "deployment": waiting.NAME}
    for metric in ("duty_cycle_current", "requests_in_flight_current", "memory_used_bytes_current"):
        found = wait_for(metric, partial(ask, f"gpuscale:{metric}"), 150)
        labels = found[0]["metric"]
        assert {name: labels.get(name) for name in expected} == expected
        assert len(found) == 1
    assert ask("count(nvidia_gpu_up == 1)")[0]["value"][1] == "1"
    assert ask('ALERTS{alertname="GpuscaleGpuLost"}') == []
    pods.set_state(service, app, waiting.NAME, waiting.STATE.replace("HOSTNAME", app) + "gpu.0.lost 1\n")
    wait_for("the alert", lambda: ask('ALERTS{alertname="GpuscaleGpuLost",alertstate="firing"}'), 150)
    assert ask("gpuscale:duty_cycle_current") == []
    (service.output / "alert.json").write_text(json.dumps(ask('ALERTS{alertname="GpuscaleGpuLost"}'), indent=1))


def _prometheus(namespace: str) -> list[pods.Manifest]:
    """A Prometheus of the operator's that takes up what is in this namespace."""
    account = {"kind": "ServiceAccount", "name": "metrics", "namespace": namespace}
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    mine = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "version": "v3.8.0",
        "serviceAccountName": "metrics",
        "podMonitorSelector": {},
        "podMonitorNamespaceSelector": mine,
        "ruleSelector": {},
        "ruleNamespaceSelector": mine,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "fsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "metrics"}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "metrics"}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "metrics"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "metrics"},
            "subjects": [account],
        },
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": {"name": "main"}, "spec": spec},
    ]
