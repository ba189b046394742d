"""Parts of the chain go away while services are under load: the HPAs hold or scale up, and all recover alone."""

from __future__ import annotations

import time

from tests.e2e import plain, pods, waiting
from tests.e2e.kube import Watch, custom, external, kubectl, wait_for
from tests.e2e.kube import pods as pods_of
from tests.e2e.service import Service, answers

DUTY, REQUESTS = "duty_cycle_current", "requests_in_flight_current"


def test_faults(service: Service) -> None:
    """Two HPAs at once: one by the duty cycle that a sidecar publishes, the recommended one by requests in flight."""
    first = plain.apply(service)
    server = waiting.apply(service)
    # Kubernetes waits 300 s before it scales down, longer than these faults last: without that wait, a figure that
    # reads too low for one sync would show.
    at_once = '{"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}'
    for hpa in ("plain", waiting.NAME):
        kubectl("patch", "hpa", "-n", service.namespace, hpa, "--type=merge", "-p", at_once)
    watches = [Watch(service.namespace, hpa, hpa, service.output / hpa, period=2.0) for hpa in ("plain", waiting.NAME)]
    with waiting.load(service, 900) as load, watches[0] as by_duty, watches[1] as by_requests:
        plain.work(service, first)
        second = str(wait_for("a second pod", lambda: _other(service, first), 200))
        plain.work(service, second)
        wait_for("its load", lambda: custom(service.namespace, DUTY)[second] > 15, 150)
        wait_for("a second server", lambda: len(pods_of(service.namespace, f"app={waiting.NAME}")) >= 2, 150)

        _prometheus_gone(service, first, watches)
        _mark(watches, "adapter restarted")
        kubectl("delete", "pod", "-n", "monitoring", "-l", "app.kubernetes.io/name=prometheus-adapter")
        wait_for("values again", lambda: _values(service, first), 120)
        _gpu_lost(service, second, watches)
        _worker_killed(service, server, watches)
        wait_for("the value of the GPU that was lost", lambda: custom(service.namespace, DUTY)[second] > 15, 150)
        time.sleep(15)
        said = load.end(30, early=True)
    counts = answers(said)
    # The requests of the worker that was killed have no answer: 20 clients, of which its connections are a part.
    assert counts["200"] > 1000
    assert counts.get("error", 0) <= 20, said
    for watch in (by_duty, by_requests):
        assert watch.replicas()[-1] == 2
        held = watch.replicas()[watch.replicas().index(2) :]
        assert min(held) == 2, f"scaled down on missing data: {watch.replicas()}"


def _prometheus_gone(service: Service, pod: str, watches: list[Watch]) -> None:
    _mark(watches, "Prometheus gone")
    kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=0")
    try:
        time.sleep(120)
    finally:
        kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=1")
    _mark(watches, "Prometheus back")
    wait_for("values again", lambda: _values(service, pod), 180)


def _gpu_lost(service: Service, pod: str, watches: list[Watch]) -> None:
    _mark(watches, "GPU of one pod lost")
    pods.set_state(service, pod, "gpuscale", plain.STATE + "gpu.0.lost 1\n")
    wait_for("its value's end", lambda: pod not in custom(service.namespace, DUTY), 60)
    time.sleep(20)
    pods.set_state(service, pod, "gpuscale", plain.STATE)
    _mark(watches, "GPU back")


def _worker_killed(service: Service, server: str, watches: list[Watch]) -> None:
    """While the first whole minute of the GPU that is back passes."""
    before = service.own_metrics(server)
    pid = waiting.kill_a_worker(service, server)
    _mark(watches, f"worker {pid} killed")

    def counted_on() -> bool:
        now = service.own_metrics(server)
        return all(now[name] > before[name] for name in before if name.startswith("gpuscale_in_flight_seconds_total"))

    wait_for("the endpoint, and counters that went on", counted_on, 20)


def _mark(watches: list[Watch], text: str) -> None:
    for watch in watches:
        watch.mark(text)


def _values(service: Service, pod: str) -> bool:
    total = external(service.namespace, REQUESTS, waiting.NAME)
    return custom(service.namespace, DUTY)[pod] > 15 and total is not None and total > 15


def _other(service: Service, first: str) -> str | None:
    names = [pod["metadata"]["name"] for pod in pods_of(service.namespace, "app=plain")]
    return next((name for name in names if name != first), None)
