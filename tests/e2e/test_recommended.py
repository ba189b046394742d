"""The recommended HPA: a step of load, then a rolling update and scale-downs under load that lose no request."""

from __future__ import annotations

import threading
import time

from tests.e2e import pods
from tests.e2e.kube import Watch, external, kubectl, wait_for
from tests.e2e.service import NAME, Service, answers
from tests.e2e.setting import sync_seconds

HPA, METRIC, TARGET = "requests-hpa", "requests_in_flight_current", 8.0
POLL = 0.5
# Three pods are what two cores carry, and half a minute is what a test can wait for: else as in k8s/.
SOONER = (
    {"op": "replace", "path": "/spec/maxReplicas", "value": 3},
    {"op": "replace", "path": "/spec/behavior/scaleDown/stabilizationWindowSeconds", "value": 30},
    {"op": "replace", "path": "/spec/behavior/scaleDown/policies/0/periodSeconds", "value": 15},
)


def test_recommended(service: Service) -> None:
    service.limit_gpus(4)
    service.apply("bert-intent", "hpa/recommended", cpu="500m", hpa=SOONER)
    wait_for("the idle total", lambda: "0/8 (avg)" in _line(service), 180)
    # Two clients keep their connections from the beginning to the end and send two requests a second each.
    with (
        Watch(service.namespace, HPA, NAME, service.output, period=1.0) as watch,
        service.hey("-z", "900s", "-c", "2", "-q", "2") as steady,
    ):
        watch.mark("120 clients more")
        after_update = _under_load(service, watch)
        watch.mark("120 clients gone")
        wait_for("one pod again", lambda: pods.replicas(service, NAME) == 1, 240)
        wait_for("the others' end", lambda: service.ready() == 1, 60)
        throughout = steady.end(30, early=True)
    (service.output / "hey.txt").write_text(after_update + throughout)
    assert answers(after_update).keys() == {"200"}, after_update
    assert answers(throughout).keys() == {"200"}, throughout
    assert answers(throughout)["200"] > 300
    assert watch.replicas()[-1] == 1
    # External AverageValue divides a total by the pods that are wanted: one that loads its model takes no part.
    assert any(row["desired"] == 3 and row["ready"] == 1 for row in watch.rows), "loading pods held the scale-up back"


def _under_load(service: Service, watch: Watch) -> str:
    """A step up to three pods, and a rolling update of them; what ``hey`` says of it."""
    where = ("-n", service.namespace, f"deployment/{NAME}")
    # Without keep-alive: each request is sent to any of the pods that are ready then.
    with service.hey("-z", "900s", "-c", "120", "-disable-keepalive") as heavy:
        _reacts(service)
        wait_for("all pods", lambda: service.ready() >= 3, 240)
        watch.mark("rolling update")
        kubectl("rollout", "restart", *where)
        kubectl("rollout", "status", *where, "--timeout=300s", timeout=320)
        return heavy.end(30, early=True)


def _reacts(service: Service) -> None:
    """Within two sync periods of the metric's telling that a second pod is wanted."""
    told = threading.Event()
    times: dict[str, float] = {}

    def read() -> None:
        while not told.wait(POLL):
            try:
                total = external(service.namespace, METRIC, NAME) or 0.0
            except RuntimeError:
                continue
            if total > 1.1 * TARGET:
                times["told"] = time.monotonic()
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        wait_for("a second pod that is wanted", lambda: pods.replicas(service, NAME) >= 2, 120, every=POLL)
        wanted = time.monotonic()
        thread.join(10)
    finally:
        told.set()
    # Each of the two is seen up to a poll and a call of kubectl late.
    late = wanted - times.get("told", wanted)
    (service.output / "reaction.txt").write_text(f"{late:.1f} s after the metric, sync {sync_seconds():g} s\n")
    assert late <= 2 * sync_seconds() + 2.0


def _line(service: Service) -> str:
    return kubectl("get", "hpa", "-n", service.namespace, HPA, "--no-headers")
