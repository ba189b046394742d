"""The API server's own judgement of every manifest in k8s/, and of what render prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from gpuscale.hpa.specification import SIDECARS, Specification
from tests.e2e import pods
from tests.e2e.kube import KUBECTL, kubectl
from tests.e2e.setting import ROOT

K8S = ROOT / "k8s"
PIECES = sorted(
    path.parent.relative_to(K8S).as_posix()
    for path in K8S.rglob("kustomization.yaml")
    if "kind: Component" not in path.read_text()
)
NEEDS = {"monitoring.coreos.com": "the Prometheus operator", "keda.sh": "KEDA"}


@pytest.mark.parametrize("piece", PIECES)
def test_server_side_dry_run(piece: str) -> None:
    _dry_run(kubectl("kustomize", str(K8S / piece)))


@pytest.mark.parametrize("signal", ["duty-cycle", "requests-in-flight", "memory"])
def test_dry_run_of_what_render_prints(signal: str) -> None:
    _dry_run(pods.rendered(Specification("chat", signal, "20", namespace="default")))


@pytest.mark.parametrize("variant", SIDECARS)
def test_dry_run_of_the_sidecar(variant: str, tmp_path: Path) -> None:
    """As a component of a Deployment of somebody's; alone it is a patch."""
    up = "../" * len(tmp_path.parts[1:])
    kustomization = {
        "resources": [f"{up}{(K8S / 'bert-intent').relative_to('/')}"],
        "components": [f"{up}{(K8S / 'sidecar' / variant).relative_to('/')}"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    _dry_run(kubectl("kustomize", str(tmp_path)))


def _dry_run(manifests: str) -> None:
    kinds = {one["apiVersion"].partition("/")[0] for one in yaml.safe_load_all(manifests) if one}
    for group, name in NEEDS.items():
        if group in kinds and group not in kubectl("api-versions"):
            pytest.skip(f"needs {name} in the cluster; the tests operator and keda apply it for real")
    # --server-side asks the API server for validation, defaults and admission; what it has of the same names is
    # another owner's, here only in a dry run.
    command = [KUBECTL, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"]
    done = subprocess.run(command, input=manifests, capture_output=True, text=True, timeout=60)
    refused = [line for line in done.stderr.splitlines() if not _only_for_want_of_the_namespace(line)]
    assert not refused, refused
    assert "serverside-applied" in done.stdout


def _only_for_want_of_the_namespace(line: str) -> bool:
    """A dry run makes no namespace for what comes after it in the same file."""
    return 'namespaces "monitoring" not found' in line or not line.strip() or line.startswith("Warning:")
