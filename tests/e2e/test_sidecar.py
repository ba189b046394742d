"""An app that knows nothing of gpuscale is scaled by what the sidecar beside it publishes."""

from __future__ import annotations

from tests.e2e import plain
from tests.e2e.kube import Watch, custom, pods, wait_for
from tests.e2e.service import Service


def test_sidecar(service: Service) -> None:
    """Of the node's two GPUs the sidecar shows the one that the app was given, and the HPA scales by it."""
    pod = plain.apply(service)
    assert plain.gpus(service, pod) == {"GPU-own"}
    wait_for("an idle duty cycle", lambda: custom(service.namespace, "duty_cycle_current")[pod] < 10, 150)
    with Watch(service.namespace, "plain", "plain", service.output) as watch:
        plain.work(service, pod)
        wait_for("a second pod", lambda: len(pods(service.namespace, "app=plain")) >= 2, 180)
    assert max(watch.replicas()) >= 2
