"""No pod at all until somebody waits for one, and none again after: the HPA counts in front of the service."""

from __future__ import annotations

import pytest

from tests.e2e import gateway, pods
from tests.e2e.kube import Watch, external, get, wait_for
from tests.e2e.kube import pods as pods_of
from tests.e2e.service import NAME, SELECTOR, Load, Service, answers

HPA = "from-zero-hpa"
SOONER = ({"op": "replace", "path": "/spec/behavior/scaleDown/stabilizationWindowSeconds", "value": 15},)


def test_from_zero(service: Service) -> None:
    gateway.apply(service)
    service.limit_gpus(1)
    try:
        service.apply("bert-intent", "hpa/from-zero", hpa=SOONER, pods=0)
    except RuntimeError as error:
        if "minReplicas" not in str(error):
            raise
        pytest.skip("needs the feature gate HPAScaleToZero: minReplicas 0 is refused")
    wait_for("the gateway's count", lambda: _waiting(service) == 0, 120)
    wait_for("an HPA that stands at 0", lambda: _stands_at(service, 0), 120)
    assert pods_of(service.namespace, SELECTOR, ready=False) == []
    with Watch(service.namespace, HPA, NAME, service.output) as watch:
        watch.mark("4 clients wait")
        url = f"http://{service.address(gateway.GATEWAY)}/predict?query=music"
        with Load("-n", "2000", "-c", "4", "-t", "200", url) as load:
            wait_for("a pod", lambda: service.ready() == 1, 240)
            watch.mark("a pod is ready")
            said = load.end(240)
        watch.mark("all have their answers")
        wait_for("no pod", lambda: pods.replicas(service, NAME) == 0, 240)
        wait_for("its end", lambda: not pods_of(service.namespace, SELECTOR, ready=False), 90)
    (service.output / "hey.txt").write_text(said)
    assert answers(said) == {"200": 2000}, said
    assert watch.replicas() == [0, 1, 0]


def _waiting(service: Service) -> float | None:
    return external(service.namespace, "requests_in_flight_current", gateway.GATEWAY)


def _stands_at(service: Service, number: int) -> bool:
    status = get("hpa", "-n", service.namespace, HPA)["status"]
    active = [one for one in status["conditions"] if one["type"] == "ScalingActive"]
    return bool(active) and active[0]["status"] == "True" and status["desiredReplicas"] == number
