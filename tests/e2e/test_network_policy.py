"""The NetworkPolicy lets Prometheus in and others not, where the cluster's network enforces such."""

from __future__ import annotations

import pytest

from tests.e2e import pods, waiting
from tests.e2e.kube import get, kubectl, prometheus, wait_for
from tests.e2e.service import Service


def test_network_policy(service: Service) -> None:
    app = waiting.apply(service, scaler=None, gpu=False)
    for name in ("stranger", "prometheus"):
        pods.apply(service, _visitor(name))
    for name in ("stranger", "prometheus"):
        where = ("-n", service.namespace, f"pod/{name}")
        kubectl("wait", *where, "--for=condition=Ready", "--timeout=60s")
    address = get("pod", "-n", service.namespace, app)["status"]["podIP"]
    wait_for("the metrics, without a policy", lambda: _asks(service, "stranger", address, 9445), 60)
    kubectl("apply", "-n", service.namespace, "-k", str(service.root / "k8s/network-policy"))
    # Prometheus' own scrapes go on whether or not the policy is enforced.
    up = f'up{{namespace="{service.namespace}",pod="{app}"}} == 1'
    wait_for("Prometheus' scrapes", lambda: prometheus(up), 60)
    assert _asks(service, "prometheus", address, 9445)
    try:
        wait_for("the refusal of a stranger", lambda: not _asks(service, "stranger", address, 9445), 15)
    except AssertionError:
        pytest.skip("this cluster's network does not enforce NetworkPolicies: a stranger's request was answered")


def _visitor(name: str) -> pods.Manifest:
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": "main", "image": pods.BUSYBOX, "command": ["sleep", "600"], "securityContext": pods.LOCKED}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "securityContext": security, "containers": [container]},
    }


def _asks(service: Service, visitor: str, address: str, port: int) -> bool:
    """Whether a pod gets the metrics within three seconds."""
    url = f"http://{address}:{port}/metrics"
    ask = f"timeout 3 wget -q -O - {url} >/dev/null && echo answered || true"
    return "answered" in kubectl("exec", "-n", service.namespace, visitor, "--", "sh", "-c", ask)
