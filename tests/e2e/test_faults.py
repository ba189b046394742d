"""Parts of the chain go away while a service is under load: the HPA holds or scales up, and all recover alone."""

from __future__ import annotations

import time

from tests.e2e import plain
from tests.e2e.kube import Watch, custom, get, kubectl, pods, wait_for
from tests.e2e.service import Service


def test_faults(service: Service) -> None:
    first = plain.apply(service)
    # Kubernetes waits 300 s before it scales down, longer than these faults last: without that wait, a figure that
    # reads too low for one sync would show.
    patch = '{"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}'
    kubectl("patch", "hpa", "-n", service.namespace, "plain", "--type=merge", "-p", patch)
    with Watch(service.namespace, "plain", "plain", service.output) as watch:
        plain.work(service, first)
        second = str(wait_for("a second pod", lambda: _other(service, first), 200))
        plain.work(service, second)
        wait_for("the second pod's load", lambda: custom(service.namespace, "duty_cycle_current")[second] > 15, 120)
        before = _replicas(service)

        watch.mark("Prometheus gone")
        kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=0")
        try:
            time.sleep(120)
            assert _replicas(service) >= before
        finally:
            kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=1")
        watch.mark("Prometheus back")
        wait_for("values again", lambda: custom(service.namespace, "duty_cycle_current")[first] > 15, 180)
        assert _replicas(service) >= before

        watch.mark("adapter restarted")
        kubectl("delete", "pod", "-n", "monitoring", "-l", "app.kubernetes.io/name=prometheus-adapter")
        wait_for("values again", lambda: custom(service.namespace, "duty_cycle_current")[first] > 15, 120)

        watch.mark("GPU of one pod lost")
        _in_state(service, second, "gpu.0.lost 1\n")
        wait_for("its value's end", lambda: second not in custom(service.namespace, "duty_cycle_current"), 60)
        time.sleep(30)
        assert _replicas(service) >= before
        _in_state(service, second, "")
        wait_for("its value again", lambda: custom(service.namespace, "duty_cycle_current").get(second), 150)
        watch.mark("GPU back")
    seen = [row["desired"] for row in watch.rows]
    assert all(row >= before for row in seen[seen.index(before) :]), "scaled down on missing data"


def _other(service: Service, first: str) -> str | None:
    names = [pod["metadata"]["name"] for pod in pods(service.namespace, "app=plain")]
    return next((name for name in names if name != first), None)


def _replicas(service: Service) -> int:
    return int(get("deployment", "-n", service.namespace, "plain")["spec"]["replicas"])


def _in_state(service: Service, pod: str, added: str) -> None:
    """Write the stub's state anew, with lines added, as one file in place of the other."""
    script = "import os, sys; open('/nvml/new', 'w').write(sys.argv[1]); os.replace('/nvml/new', '/nvml/state')"
    kubectl("exec", "-n", service.namespace, pod, "-c", "gpuscale", "--", "python", "-c", script, plain.STATE + added)
