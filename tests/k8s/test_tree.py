"""k8s/ is what render makes of the reference service, builds with kustomize, and names no series that is not there."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuscale.catalogue import CATALOGUE
from gpuscale.hpa import tree
from gpuscale.hpa.api_metrics import API_METRICS, IN_FLIGHT_RATE, IN_FLIGHT_SCRAPED, WATCHED
from gpuscale.hpa.operator import MONITORED_LABEL
from tests.k8s.programs import run

K8S = Path(__file__).parents[2] / "k8s"
FILES = tree.files()
KUSTOMIZATIONS = sorted(
    path.parent.relative_to(K8S).as_posix()
    for path in K8S.rglob("kustomization.yaml")
    if "kind: Component" not in path.read_text()
)


@pytest.mark.parametrize("path", sorted(FILES))
def test_the_folder_is_what_render_makes(path: str) -> None:
    assert (K8S / path).read_text() == FILES[path], "run: python -m gpuscale.hpa.tree k8s"


def build(folder: Path) -> list[dict[str, Any]]:
    done = run("kubectl", "kustomize", str(folder))
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_each_piece_builds_alone(name: str) -> None:
    assert build(K8S / name)


@pytest.mark.parametrize("variant", ["shared-process-namespace", "dra"])
def test_the_sidecar_is_added_to_a_deployment(variant: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text(f"resources: [k8s/bert-intent]\ncomponents: [k8s/sidecar/{variant}]\n")
    (deployment,) = (one for one in build(tmp_path) if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["initContainers"]] == ["gpuscale"]
    assert [container["name"] for container in pod["containers"]] == ["bert-intent-detection"]
    assert pod["containers"][0]["image"].startswith("bert-intent:")
    if variant == "dra":
        assert pod["resourceClaims"][0]["name"] == pod["containers"][0]["resources"]["claims"][0]["name"]


def test_quickstart_has_the_contract_s_names() -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in build(K8S / "quickstart")}
    deployment = found["Deployment", "bert-intent-detection"]
    assert "replicas" not in deployment["spec"], "it would fight the HPA"
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"].items() >= MONITORED_LABEL.items()
    container = template["spec"]["containers"][0]
    assert {80, 9445} == {port["containerPort"] for port in container["ports"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    service = found["Service", "bert-intent-detection-svc"]["spec"]
    assert (service["type"], service["ports"][0]["port"]) == ("LoadBalancer", 8500)
    assert found["HorizontalPodAutoscaler", "gpu-hpa"]["spec"]["maxReplicas"] == 10
    assert ("APIService", "v1beta1.external.metrics.k8s.io") in found
    assert ("RoleBinding", "gpuscale-prometheus-adapter-auth-reader") in found


def test_every_pod_passes_the_restricted_standard() -> None:
    for one in build(K8S / "quickstart"):
        if one["kind"] != "Deployment":
            continue
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


def test_every_series_named_in_k8s_exists() -> None:
    known = {series.name for series in CATALOGUE} | {WATCHED, IN_FLIGHT_RATE, IN_FLIGHT_SCRAPED}
    known |= {metric.recorded for metric in API_METRICS}
    known |= {series.name + suffix for series in CATALOGUE if series.type == "histogram" for suffix in ("_bucket",)}
    named = set()
    for path in K8S.rglob("*.*"):
        if path.suffix in (".yaml", ".json", ".yml"):
            text = path.read_text()
            named |= set(re.findall(r"\b(?:nvidia_gpu|gpuscale)_[a-z0-9_]+\b", text))
            named |= set(re.findall(r"\bgpuscale:[a-z0-9_]+(?::[a-z0-9_]+)?\b", text))
    named = {name for name in named if not re.fullmatch(r"gpuscale:\d.*", name)}
    assert len(named) >= 15
    assert named <= known


def test_the_adapter_s_flags_suit_its_rules() -> None:
    from gpuscale.hpa.adapter_rules import MAX_AGE, RELIST_INTERVAL

    text = (K8S / "prometheus-adapter/adapter.yaml").read_text()
    assert f"--metrics-relist-interval={RELIST_INTERVAL}" in text
    assert f"--metrics-max-age={MAX_AGE}" in text
    for rule in yaml.safe_load((K8S / "prometheus-adapter/config.yaml").read_text())["rules"]:
        assert rule["metricsQuery"].endswith("by (<<.GroupBy>>)")


def test_the_dashboard_is_json_that_grafana_reads() -> None:
    board = json.loads((K8S / "grafana/gpuscale.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 10
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
