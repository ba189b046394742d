"""The cluster, its images and what runs in it: brought up for the tests, taken away after them.

Runs only with GPUSCALE_E2E=1 (as ``make e2e`` sets it).
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuscale import __version__
from tests.e2e.kube import kubectl, wait_for
from tests.e2e.service import Service

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT.parent / "shared/cluster/cluster"
OUTPUT = ROOT / "build/e2e"
IMAGES = {"bert-intent": f"bert-intent:{__version__}", "sidecar": f"gpuscale-sidecar:{__version__}"}
WITH_KIND = f"""\
No cluster: KUBECONFIG is not set and {CLUSTER.relative_to(ROOT.parent)} is not beside this repository. With kind:
  kind create cluster
  kubectl patch node kind-control-plane --subresource=status --type=merge \\
    -p '{{"status":{{"capacity":{{"nvidia.com/gpu":"4"}}}}}}'
  docker build --target bert-intent -t bert-intent:{__version__} .
  docker build --target sidecar -t gpuscale-sidecar:{__version__} .
  kind load docker-image bert-intent:{__version__} gpuscale-sidecar:{__version__}
  export KUBECONFIG=~/.kube/config"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests out of an ordinary run."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(5400))  # images may have to be built first
            if os.environ.get("GPUSCALE_E2E") != "1":
                item.add_marker(pytest.mark.skip(reason="needs a Kubernetes cluster: make e2e"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A cluster that kubectl reaches; one that was not up before is down after."""
    begun = False
    if not os.environ.get("KUBECONFIG"):
        if not CLUSTER.exists():
            pytest.exit(WITH_KIND, returncode=1)
        begun = subprocess.run([CLUSTER, "status"], capture_output=True).returncode != 0
        said = subprocess.run([CLUSTER, "up"], capture_output=True, text=True, timeout=3000, check=True).stdout
        for line in said.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = os.path.expandvars(value.strip('"'))
    kubectl("get", "--raw", "/readyz")
    yield
    if begun:
        subprocess.run([CLUSTER, "down"], check=True, timeout=300)


@pytest.fixture(scope="session")
def images(cluster: None) -> None:
    """Our two images, from our Dockerfile; a cluster that was handed over has them already."""
    if not CLUSTER.exists() or os.environ.get("GPUSCALE_E2E_IMAGES") == "present":
        return
    for target, name in IMAGES.items():
        command = [str(CLUSTER), "build-image", "-t", name, "--build-arg", f"TARGET={target}", str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="session")
def monitoring(cluster: None) -> Iterator[None]:
    """The manifests' own Prometheus and prometheus-adapter, unchanged; who had them before keeps them."""
    pieces = ("namespace", "prometheus", "prometheus-adapter")
    there = kubectl("get", "namespace", "monitoring", "--ignore-not-found").strip()
    for piece in pieces:
        kubectl("apply", "-k", str(ROOT / "k8s" / piece))
    for deployment in ("prometheus", "prometheus-adapter"):
        kubectl("-n", "monitoring", "rollout", "status", f"deployment/{deployment}", "--timeout=120s", timeout=150)
    for api in ("custom", "external"):
        kubectl("wait", "--for=condition=Available", f"apiservice/v1beta1.{api}.metrics.k8s.io", "--timeout=60s")
    yield
    for piece in () if there else reversed(pieces):
        kubectl("delete", "-k", str(ROOT / "k8s" / piece), "--ignore-not-found", "--timeout=120s", timeout=200)


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """libnvidia-ml.so.1, which stands for the driver where there is none."""
    from tests.nvml_stub import build

    return Path(str(build(tmp_path_factory.mktemp("stub")))).read_bytes()


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Path:
    """Where a test keeps what it observed."""
    folder = OUTPUT / str(request.node.name).removeprefix("test_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def service(
    request: pytest.FixtureRequest, monitoring: None, images: None, stub: bytes, output: Path
) -> Iterator[Service]:
    """A namespace that enforces `restricted`, in which a test puts what it scales."""
    namespace = "e2e-" + request.node.name.removeprefix("test_").replace("_", "-")[:40]
    wait_for("the namespace's end", lambda: not kubectl("get", "ns", namespace, "--ignore-not-found"), 120)
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    library = base64.b64encode(stub).decode()
    state = "gpus 1\ngpu.0.uuid GPU-HOSTNAME\ngpu.0.load 0 follow cgroup cores=CORES\n"
    yield Service(namespace, ROOT, output, library, state)
    kubectl("delete", "namespace", namespace, "--timeout=120s", timeout=150)
