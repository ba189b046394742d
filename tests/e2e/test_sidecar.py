"""An app that knows nothing of gpuscale is scaled by what the sidecar beside it publishes."""

from __future__ import annotations

import pytest

from tests.e2e import plain, pods
from tests.e2e.kube import Watch, custom, external, kubectl, wait_for
from tests.e2e.kube import pods as pods_of
from tests.e2e.service import Service
from tests.e2e.walking import PER_POD


def test_sidecar(service: Service) -> None:
    """Of the node's two GPUs the sidecar shows the one that the app was given; the HPA scales by it, up and down."""
    pod = plain.apply(service)
    assert plain.gpus(service, pod) == {"GPU-own"}
    wait_for("an idle duty cycle", lambda: custom(service.namespace, "duty_cycle_current")[pod] < 10, 150)
    for metric in PER_POD:
        assert external(service.namespace, metric, "plain") == pytest.approx(
            custom(service.namespace, metric)[pod], rel=2e-3
        )
    # The contract's HPA waits for Kubernetes' 300 s; the walk shows that, and here it need not be waited for again.
    sooner = '{"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 15}}}}'
    kubectl("patch", "hpa", "-n", service.namespace, "plain", "--type=merge", "-p", sooner)
    with Watch(service.namespace, "plain", "plain", service.output) as watch:
        watch.mark("the app works")
        plain.work(service, pod)
        wait_for("a second pod", lambda: len(pods_of(service.namespace, "app=plain")) >= 2, 180)
        for each in pods_of(service.namespace, "app=plain"):
            assert plain.gpus(service, each["metadata"]["name"]) == {"GPU-own"}
        watch.mark("the app rests")
        plain.rest(service, pod)
        wait_for("one pod again", lambda: pods.replicas(service, "plain") == 1, 180)
    assert watch.replicas() == [1, 2, 1]
