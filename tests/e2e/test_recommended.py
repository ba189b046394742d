"""The recommended HPA: a step of load, then a rolling update and scale-downs under load that lose no request."""

from __future__ import annotations

import re

from tests.e2e.kube import Watch, kubectl, wait_for
from tests.e2e.service import NAME, Service


def test_recommended(service: Service) -> None:
    service.apply("bert-intent", "hpa/recommended", cpu="500m")
    wait_for("the idle total", lambda: "0/8 (avg)" in _line(service), 180)
    with Watch(service.namespace, "requests-hpa", NAME, service.output) as watch:
        watch.mark("hey -c 30")
        # Without keep-alive: each request is sent to any of the pods that are ready then.
        hey = service.hey("-z", "150s", "-c", "30", "-disable-keepalive")
        try:
            wait_for("a second pod that is wanted", lambda: watch.rows and watch.rows[-1]["desired"] >= 2, 90)
            wait_for("a second pod", lambda: service.ready() >= 2, 120)
            watch.mark("rolling update")
            kubectl("rollout", "restart", "-n", service.namespace, f"deployment/{NAME}")
            said, _ = hey.communicate(timeout=240)
        finally:
            hey.kill()
    (service.output / "hey.txt").write_text(said)
    assert {status for status, _ in re.findall(r"\[(\d+)\]\s+(\d+) responses", said)} == {"200"}, said
    assert "Error distribution" not in said, said


def _line(service: Service) -> str:
    return kubectl("get", "hpa", "-n", service.namespace, "requests-hpa", "--no-headers")
