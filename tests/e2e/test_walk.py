"""The walk that the documentation leads through: idle, load, more pods, and back to one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.kube import Watch, custom, external, kubectl, pods, wait_for
from tests.e2e.service import NAME, SELECTOR, Service, answers
from tests.e2e.walking import PER_POD

CPU = "200m"
"""A pod's, by which 10,000 requests last for a minute and a half: at the service's own speed they end before the
metric's window of a minute has filled."""


def test_walk(service: Service, output: Path) -> None:
    # The stub takes the CPU time in which the model is loaded for the GPU's, which a GPU would not know of: the HPA
    # comes when that has left the window.
    service.limit_gpus(2)
    service.apply("bert-intent", cpu=CPU)
    wait_for("an idle pod", lambda: external(service.namespace, "duty_cycle_current", NAME) == 0, 180)
    service.apply("bert-intent", "hpa", cpu=CPU)

    def idle() -> bool:
        line = kubectl("get", "hpa", "-n", service.namespace, "gpu-hpa", "--no-headers")
        (output / "idle.txt").write_text(line)
        return " 0/20 " in line

    wait_for("`kubectl get hpa` shows 0/20", idle, 180)
    assert service.predict("music") == "PlayMusic"
    (pod,) = pods(service.namespace, SELECTOR)
    _values_are_the_pod_s_own(service, pod["metadata"]["name"])

    with Watch(service.namespace, "gpu-hpa", NAME, output) as watch:
        watch.mark("hey -n 10000 -c 100")
        with service.hey("-n", "10000", "-c", "100") as load:
            wait_for("TARGETS over 20", lambda: _duty_cycle(watch) > 20, 150)
            _duty_cycle_is_the_pod_s_own(service, pod["metadata"]["name"])
            wait_for("a second pod", lambda: service.ready() >= 2, 180)
            said = load.end(420)
        watch.mark("the load has ended")
        (output / "hey.txt").write_text(said)
        assert answers(said) == {"200": 10000}, said
        wait_for("one pod again", lambda: len(pods(service.namespace, SELECTOR, ready=False)) == 1, 540)
    assert max(watch.replicas()) >= 2


def _duty_cycle(watch: Watch) -> float:
    return float(watch.rows[-1]["metrics"].get("duty_cycle_current", 0.0))


def _values_are_the_pod_s_own(service: Service, pod: str) -> None:
    """Idle values stand still, so that the APIs' and the pod's own must be equal."""
    own = service.own_metrics(pod)
    for metric, series in PER_POD.items():
        expected = sum(value for name, value in own.items() if name.startswith(series))
        assert expected > 0
        # Power is the mean between two readings of the energy counter: it moves by parts of a thousand.
        assert custom(service.namespace, metric) == {pod: pytest.approx(expected, rel=2e-3)}
        assert external(service.namespace, metric, NAME) == pytest.approx(expected, rel=2e-3)
    assert custom(service.namespace, "duty_cycle_current") == {pod: 0}
    assert external(service.namespace, "duty_cycle_current", NAME) == 0
    assert external(service.namespace, "requests_in_flight_current", NAME) is not None
    assert external(service.namespace, "requests_in_flight_current", "another") is None


def _duty_cycle_is_the_pod_s_own(service: Service, pod: str) -> None:
    """Once the load has lasted for the window, the minute's mean is that of the pod's own counter."""

    def busy() -> float:
        return sum(
            value
            for name, value in service.own_metrics(pod).items()
            if name.startswith("nvidia_gpu_busy_seconds_total")
        )

    first, begun = busy(), time.monotonic()
    time.sleep(60)
    mean = 100 * (busy() - first) / (time.monotonic() - begun)
    told = custom(service.namespace, "duty_cycle_current")[pod]
    assert abs(told - mean) <= 12, (told, mean)
