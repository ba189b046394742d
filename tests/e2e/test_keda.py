"""KEDA's ScaledObjects, made from the same specification as the HPAs, scale for real; an outage changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e import plain, pods, waiting
from tests.e2e.kube import Watch, kubectl, prometheus, wait_for
from tests.e2e.kube import pods as pods_of
from tests.e2e.service import Service
from tests.e2e.setting import EXTERNAL, ROOT, add

AT_ONCE = """{"spec": {"advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {
    "stabilizationWindowSeconds": 0}}}}}}"""


def test_keda(service: Service) -> None:
    with _external_metrics_are_keda_s():
        for piece in ("gpu", "recommended"):
            kubectl("apply", "--server-side", "--dry-run=server", "-k", str(ROOT / "k8s/keda" / piece))
        first = plain.apply(service, scaler="keda")
        waiting.apply(service, scaler="keda")
        for name in ("plain", waiting.NAME):
            # 300 s would hide a figure that reads too low for a while.
            kubectl("patch", "scaledobject", "-n", service.namespace, name, "--type=merge", "-p", AT_ONCE)
            where = ("-n", service.namespace, f"scaledobject/{name}")
            kubectl("wait", *where, "--for=condition=Ready", "--timeout=60s")
        names = ("plain", waiting.NAME)
        watches = [Watch(service.namespace, f"keda-hpa-{name}", name, service.output / name, 2.0) for name in names]
        with watches[0] as by_duty, watches[1] as by_requests:
            with waiting.load(service, 900):
                plain.work(service, first)
                for name in names:
                    _wait_for_pods(service, name, 2)
                _outage(service, watches)
                for name in names:
                    assert pods.replicas(service, name) == 2, f"{name} scaled down on missing data"
            plain.rest(service, first)
            for watch in watches:
                watch.mark("no load")
            for name in names:
                _wait_for_pods(service, name, 1)
        for watch in (by_duty, by_requests):
            assert watch.replicas() == [1, 2, 1], watch.replicas()


def _wait_for_pods(service: Service, name: str, number: int) -> None:
    wait_for(f"{number} of {name}", lambda: len(pods_of(service.namespace, f"app={name}")) == number, 200)


def _outage(service: Service, watches: list[Watch]) -> None:
    """A minute without Prometheus: four of KEDA's polls."""
    for watch in watches:
        watch.mark("Prometheus gone")
    kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=0")
    try:
        time.sleep(60)
    finally:
        kubectl("scale", "-n", "monitoring", "deployment/prometheus", "--replicas=1")
    for watch in watches:
        watch.mark("Prometheus back")
    busy = f'gpuscale:duty_cycle_current{{namespace="{service.namespace}"}} > 15'
    wait_for("values again", lambda: prometheus(busy), 180)
    time.sleep(30)  # two of KEDA's polls, and the HPA's syncs after them


@contextmanager
def _external_metrics_are_keda_s() -> Iterator[None]:
    """Only one server can have external.metrics.k8s.io: the adapter's registration makes way for as long."""
    owner = "jsonpath={.spec.service.namespace}"
    server = kubectl("get", EXTERNAL, "--ignore-not-found", "-o", owner)
    if server == "monitoring":
        kubectl("delete", EXTERNAL)
    try:
        add("keda", "scaledobjects.keda.sh")
        yield
    finally:
        if server == "monitoring":
            kubectl("delete", EXTERNAL, "--ignore-not-found")
            kubectl("apply", "-k", str(ROOT / "k8s/prometheus-adapter"))
