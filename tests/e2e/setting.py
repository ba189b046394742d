"""The cluster that the tests run on: brought up, given our images and our monitoring, and left as it was found."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuscale import __version__
from tests.e2e.kube import kubectl, wait_for

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT.parent / "shared/cluster/cluster"
OUTPUT = ROOT / "build/e2e"
ADDED = OUTPUT / "added.json"
"""What the add-ons brought that a test asked for, to be taken away again."""
IMAGES = {"bert-intent": f"bert-intent:{__version__}", "sidecar": f"gpuscale-sidecar:{__version__}"}
LABEL = "gpuscale.dev/made-by=e2e"
"""Of the tests' namespaces."""
MONITORING = ("namespace", "prometheus", "prometheus-adapter")
SYNC = os.environ.get("GPUSCALE_HPA_SYNC", "5s")
"""The HPA controller's period on a cluster that is brought up here; say it for one that was there."""
EXTERNAL = "apiservice/v1beta1.external.metrics.k8s.io"
WITH_KIND = f"""\
No cluster: KUBECONFIG is not set and {CLUSTER.relative_to(ROOT.parent)} is not beside this repository. With kind:
  kind create cluster
  kubectl patch node kind-control-plane --subresource=status --type=merge \\
    -p '{{"status":{{"capacity":{{"nvidia.com/gpu":"4"}}}}}}'
  docker build --target bert-intent -t bert-intent:{__version__} .
  docker build --target sidecar -t gpuscale-sidecar:{__version__} .
  kind load docker-image bert-intent:{__version__} gpuscale-sidecar:{__version__}
  export KUBECONFIG=~/.kube/config GPUSCALE_HPA_SYNC=15s"""
# What an add-on leaves outside namespaces, and in one that is everybody's.
_SHARED = (
    ("namespaces",), ("apiservices",), ("clusterrolebindings",), ("clusterroles",), ("customresourcedefinitions",),
    ("validatingwebhookconfigurations",), ("mutatingwebhookconfigurations",), ("priorityclasses",),
    ("-n", "kube-system", "rolebindings"), ("-n", "kube-system", "roles"), ("-n", "kube-system", "services"),
    ("-n", "kube-system", "deployments"), ("-n", "kube-system", "configmaps"),
)  # fmt: skip

Names = dict[tuple[str, ...], set[str]]


class Setting:
    """What :meth:`enter` did, for :meth:`leave` to undo."""

    def __init__(self) -> None:
        self._brought_up = self._monitoring = False

    def enter(self) -> None:
        """Raises RuntimeError, with what was said, for whatever does not come up."""
        if not os.environ.get("KUBECONFIG"):
            if not CLUSTER.exists():
                pytest.exit(WITH_KIND, returncode=1)
            self._bring_up()
        kubectl("get", "--raw", "/readyz")
        ADDED.unlink(missing_ok=True)
        if CLUSTER.exists() and os.environ.get("GPUSCALE_E2E_IMAGES") != "present":
            _build_images()
        if not kubectl("get", "namespace", "monitoring", "--ignore-not-found"):
            self._monitoring = True
            _monitor()

    def leave(self) -> None:
        """Take away what was not there before; a cluster that was not up is down again."""
        if self._brought_up:
            _cluster("down", seconds=300)
            return
        wait_for("the namespaces' end", lambda: not kubectl("get", "namespaces", "-l", LABEL, "-o", "name"), 180)
        if ADDED.exists():
            _remove([(tuple(kind), set(names)) for kind, names in json.loads(ADDED.read_text())])
        for piece in reversed(MONITORING if self._monitoring else ()):
            kubectl("delete", "-k", str(ROOT / "k8s" / piece), "--ignore-not-found", "--timeout=120s", timeout=200)

    def _bring_up(self) -> None:
        self._brought_up = subprocess.run([CLUSTER, "status"], capture_output=True).returncode != 0
        said = _cluster("up", "--hpa-sync", SYNC, seconds=3000) if self._brought_up else _cluster("env", seconds=60)
        for line in said.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = os.path.expandvars(value.strip('"'))


def sync_seconds() -> float:
    """The HPA controller's period."""
    return float(SYNC.removesuffix("s"))


def add(addon: str, definition: str) -> None:
    """Have an add-on in the cluster, whose CustomResourceDefinition is ``definition``; else skip and say why."""
    if kubectl("get", "crd", definition, "--ignore-not-found"):
        return
    if not CLUSTER.exists():
        pytest.skip(f"needs {addon} in the cluster ({definition} is not there)")
    before = _names()
    _cluster("addon", addon, seconds=1500)
    added = json.loads(ADDED.read_text()) if ADDED.exists() else []
    # A namespace of the test beside this one may have come in between; the external API has an owner after the test.
    not_its_own = ("/e2e-", EXTERNAL.partition("/")[2])
    new = {
        kind: {name for name in names - before[kind] if not any(part in name for part in not_its_own)}
        for kind, names in _names().items()
    }
    ADDED.write_text(json.dumps(added + [(kind, sorted(names)) for kind, names in new.items() if names]))


@contextmanager
def lock(name: str, alone: bool) -> Iterator[None]:
    """Held by every test while it runs: shared, or ``alone`` by one that takes parts away that others need."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def _cluster(*arguments: str, seconds: float) -> str:
    done = subprocess.run([CLUSTER, *arguments], capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"cluster {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def _build_images() -> None:
    """Our two images, from our Dockerfile."""
    for target, name in IMAGES.items():
        _cluster("build-image", "-t", name, "--build-arg", f"TARGET={target}", str(ROOT), seconds=3000)


def _monitor() -> None:
    """The manifests' own Prometheus and prometheus-adapter, unchanged."""
    for piece in MONITORING:
        kubectl("apply", "-k", str(ROOT / "k8s" / piece))
    for deployment in ("prometheus", "prometheus-adapter"):
        kubectl("-n", "monitoring", "rollout", "status", f"deployment/{deployment}", "--timeout=120s", timeout=150)
    for api in ("custom", "external"):
        kubectl("wait", "--for=condition=Available", f"apiservice/v1beta1.{api}.metrics.k8s.io", "--timeout=60s")


def _names() -> Names:
    return {kind: set(kubectl("get", *kind, "-o", "name").split()) for kind in _SHARED}


def _remove(added: list[tuple[tuple[str, ...], set[str]]]) -> None:
    """API services first: with their server gone, a namespace cannot end."""
    for kind, names in sorted(added, key=lambda entry: "apiservices" not in entry[0]):
        kubectl("delete", *kind[:-1], *sorted(names), "--ignore-not-found", "--wait=false")

    def gone() -> bool:
        now = _names()
        return not any(now[kind] & names for kind, names in added)

    wait_for("the end of the add-ons", gone, 240, every=3)
