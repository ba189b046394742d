"""`kubectl apply -k k8s/quickstart`, word for word: everything comes up, the service answers, the HPA is there."""

from __future__ import annotations

import pytest

from tests.e2e.kube import get, kubectl, wait_for
from tests.e2e.service import NAME, Service
from tests.e2e.setting import ROOT

QUICKSTART = ROOT / "k8s/quickstart"
NOT_MONITORING = ("hpa", "network-policy", "bert-intent", "grafana")
"""What it brings besides, to be taken away again: into the namespace ``default``, but for the dashboard."""


def test_quickstart(service: Service) -> None:
    """Without the tests' overlay, so on a node without NVML the pod has a GPU by count and publishes no reading."""
    if kubectl("get", "deployment", NAME, "-n", "default", "--ignore-not-found"):
        pytest.skip(f"a Deployment {NAME} is in the namespace default already, and not this test's to take away")
    here = Service("default", service.root, service.output, "", "")
    try:
        kubectl("apply", "-k", str(QUICKSTART))
        wait_for("the service's readiness", lambda: here.ready() == 1, 240)
        assert here.predict("music") == "PlayMusic"
        pod = get("pods", "-n", "default", "-l", f"app={NAME}")["items"][0]
        assert any(name.startswith("nvidia_gpu_num_devices") for name in here.own_metrics(pod["metadata"]["name"]))
        hpa = get("hpa", "gpu-hpa", "-n", "default")
        assert hpa["spec"]["scaleTargetRef"]["name"] == NAME
        for api in ("custom", "external"):
            kubectl("wait", "--for=condition=Available", f"apiservice/v1beta1.{api}.metrics.k8s.io", "--timeout=60s")
    finally:
        for piece in NOT_MONITORING:
            kubectl("delete", "-k", str(ROOT / "k8s" / piece), "--ignore-not-found", "--wait=false")
