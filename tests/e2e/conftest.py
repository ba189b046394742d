"""Fixtures of the end-to-end tests. They run only with GPUSCALE_E2E=1 (as ``make e2e`` sets it), two at a time.

The cluster is the affair of the process that starts the workers: see ``setting.py``.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kube import kubectl, wait_for
from tests.e2e.service import Service
from tests.e2e.setting import LABEL, OUTPUT, ROOT, Setting, lock

IN_ORDER = {
    "walk": ("walk", "recommended"),
    "others": ("manifests", "quickstart", "from_zero", "sidecar", "network_policy", "operator", "faults", "keda"),
}
"""One worker each. The walk waits five minutes for its pods to go, in which the other worker gets on; what takes
Prometheus or an API away comes last and has the cluster for itself."""
ALONE = ("faults", "keda")
_setting = Setting()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark and order these tests; leave them out of an ordinary run."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    order = [name for names in IN_ORDER.values() for name in names]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(2400))  # an add-on may have to be compiled first
        if os.environ.get("GPUSCALE_E2E") != "1":
            item.add_marker(pytest.mark.skip(reason="needs a Kubernetes cluster: make e2e"))
    others = [item for item in items if item not in ours]
    items[:] = others + sorted(ours, key=lambda item: order.index(_name(item.path)))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each group of IN_ORDER to one worker. xdist's own groups (3.8) are lost on pytest 9."""
    if os.environ.get("GPUSCALE_E2E") != "1":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            name = _name(Path(nodeid.partition("::")[0]))
            return next(group for group, names in IN_ORDER.items() if name in names)

    return Groups(config, log)


def _name(path: Path) -> str:
    return path.stem.removeprefix("test_")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before the workers start, which find KUBECONFIG in their environment."""
    if os.environ.get("GPUSCALE_E2E") == "1" and not hasattr(session.config, "workerinput"):
        _setting.enter()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """When the last worker has ended."""
    if os.environ.get("GPUSCALE_E2E") == "1" and not hasattr(session.config, "workerinput"):
        _setting.leave()


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
def service(request: pytest.FixtureRequest, stub: bytes, output: Path) -> Iterator[Service]:
    """A namespace that enforces `restricted`, in which a test puts what it scales."""
    name = request.node.name.removeprefix("test_")
    namespace = "e2e-" + name.replace("_", "-")[:40]
    with lock("cluster", alone=name in ALONE):
        wait_for("the namespace's end", lambda: not kubectl("get", "ns", namespace, "--ignore-not-found"), 120)
        kubectl("create", "namespace", namespace)
        kubectl("label", "namespace", namespace, LABEL, "pod-security.kubernetes.io/enforce=restricted")
        library = base64.b64encode(stub).decode()
        state = "gpus 1\ngpu.0.uuid GPU-HOSTNAME\ngpu.0.load 0 follow cgroup cores=CORES idle=IDLE\n"
        yield Service(namespace, ROOT, output, library, state)
        _keep(namespace, output)
        # Its pods take their time to end, which the next test need not wait for.
        kubectl("delete", "namespace", namespace, "--wait=false")


def _keep(namespace: str, output: Path) -> None:
    """What one wants to see when a test has failed."""
    where = ("-n", namespace)
    (output / "pods.txt").write_text(kubectl("describe", "pods", *where, check=False))
    (output / "events.txt").write_text(kubectl("get", "events", *where, "--sort-by=.lastTimestamp", check=False))
    pods = json.loads(kubectl("get", "pods", *where, "-o", "json", check=False) or '{"items": []}')["items"]
    for pod in pods:
        name = pod["metadata"]["name"]
        logs = kubectl("logs", *where, name, "--all-containers", "--tail=200", check=False)
        (output / f"{name}.log").write_text(logs)
