"""Bad input is refused with the option's name and the remedy; good input gives the manifests that were asked for."""

import dataclasses
from typing import Any

import pytest
import yaml

from gpuscale import cli
from gpuscale.errors import ConfigurationError
from gpuscale.hpa.emit import plain
from gpuscale.hpa.scaled_object import scaled_object
from gpuscale.hpa.specification import Specification


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deployment": "Chat"}, "--deployment .*small letters"),
        ({"deployment": "x" * 47}, "--deployment .*46"),
        ({"signal": "gpu"}, "--signal .*requests-in-flight"),
        ({"target": "0"}, "--target .*positive"),
        ({"target": "20%"}, "--target .*20Gi"),
        ({"target": "-3"}, "--target"),
        ({"maximum": 0}, "--max "),
        ({"minimum": 11}, "--min .*--max"),
        ({"minimum": -1}, "--min"),
        ({"minimum": 0}, "--min 0 needs .*--counted-by"),
        ({"minimum": 0, "signal": "requests-in-flight"}, "--counted-by GATEWAY"),
        ({"counted_by": "gateway"}, "--counted-by goes with"),
        ({"counted_by": "chat", "signal": "requests-in-flight"}, "another Deployment"),
        ({"sidecar": "envoy"}, "--sidecar .*dra"),
        ({"duty_cycle_limit": 101}, "--duty-cycle-limit"),
        ({"namespace": "a_b"}, "--namespace"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Specification(**{"deployment": "chat", **options})


def _rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.main(["render", "--deployment", "chat", *arguments]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_the_contract_s_hpa(capsys: pytest.CaptureFixture[str]) -> None:
    (hpa,) = _rendered(
        capsys, "--signal", "duty-cycle", "--target", "20", "--min", "1", "--max", "10", "--for", "adapter"
    )
    assert hpa["apiVersion"] == "autoscaling/v2"
    assert hpa["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "minReplicas": 1,
        "maxReplicas": 10,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "duty_cycle_current"},
                    "target": {"type": "AverageValue", "averageValue": "20"},
                },
            }
        ],
    }


def test_from_zero_asks_the_gateway_and_no_pod(capsys: pytest.CaptureFixture[str]) -> None:
    (hpa,) = _rendered(capsys, "--signal", "requests-in-flight", "--min", "0", "--counted-by", "gateway")
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["selector"] == {"matchLabels": {"deployment": "gateway"}}


def test_memory_never_scales_down(capsys: pytest.CaptureFixture[str]) -> None:
    (hpa,) = _rendered(capsys, "--signal", "memory", "--target", "20Gi")
    assert hpa["spec"]["behavior"] == {"scaleDown": {"selectPolicy": "Disabled"}}


def test_a_sidecar_comes_as_a_patch_of_the_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    _, patch = _rendered(capsys, "--sidecar")
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert (container["restartPolicy"], patch["metadata"]["name"]) == ("Always", "chat")
    _, claim, patch = _rendered(capsys, "--sidecar", "dra")
    assert claim["kind"] == "ResourceClaimTemplate"
    assert patch["spec"]["template"]["spec"]["containers"][0]["name"] == "chat"


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "--deployment", "chat", "--min", "0"]) == 2
    assert "--counted-by" in capsys.readouterr().err


@pytest.mark.parametrize("signal", ["duty-cycle", "requests-in-flight", "memory"])
def test_keda_has_the_hpa_s_range_and_takes_no_outage_for_zero(signal: str) -> None:
    specification = Specification("chat", signal, "20Gi" if signal == "memory" else "500m", 2, 7, namespace="shop")
    spec = plain(scaled_object(specification))["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 7)
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert 'namespace="shop",deployment="chat"' in trigger["metadata"]["query"]
    wanted = str(20 * 2**30) if signal == "memory" else "0.5"
    assert spec["triggers"][0]["metadata"]["threshold"] == wanted


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Specification("chat").target = "3"  # type: ignore[misc]
