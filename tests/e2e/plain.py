"""An app that knows nothing of gpuscale, with our sidecar beside it and what `gpuscale render` made to scale it."""

from __future__ import annotations

import json

from gpuscale import __version__
from gpuscale.hpa.specification import Specification
from tests.e2e import pods
from tests.e2e.kube import kubectl, wait_for
from tests.e2e.service import Service

STATE = """\
gpus 2
gpu.0.uuid GPU-own
gpu.0.load 0 follow visible cores=1
gpu.1.uuid GPU-of-another-pod
gpu.1.util 100
"""
"""The node's GPUs. The other one is always busy: were it counted, the mean would be 50 and more."""
# Burns 50 ms of CPU time in each 100 ms while /scratch/busy is there: nothing of gpuscale, Python's own loop.
APP = """\
import os, time
while True:
    end = time.process_time() + (0.05 if os.path.exists('/scratch/busy') else 0)
    while time.process_time() < end:
        pass
    time.sleep(0.05)
"""


def _app() -> pods.Manifest:
    """A plain Deployment; the container toolkit's part (devices, NVIDIA_VISIBLE_DEVICES) is played by the env."""
    app = {
        "name": "app",
        "image": f"gpuscale-sidecar:{__version__}",  # for its Python
        "command": ["python", "-c", APP],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "GPU-own"}],
        "resources": {"requests": {"cpu": "50m"}, "limits": {"nvidia.com/gpu": "1"}},
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/scratch"},
            # The device node that the container toolkit would put here: its name is what tells.
            {"name": "stub", "mountPath": "/dev/nvidia0", "subPath": "state", "readOnly": True},
        ],
    }
    return pods.deployment("plain", [app])


def apply(service: Service, scaler: str = "adapter", most: int = 2) -> str:
    """Apply it all; the name of its first pod, whose sidecar has found a GPU."""
    base, outer = service.output / "overlay/base", service.output / "overlay/driver"
    base.mkdir(parents=True)
    outer.mkdir()
    specification = Specification("plain", "duty-cycle", "20", maximum=most, namespace=service.namespace)
    (base / "app.json").write_text(json.dumps(_app()))
    (base / "stub.json").write_text(json.dumps(service.stub_map(STATE, "plain-stub")))
    (base / "scaler.yaml").write_text(pods.rendered(specification, scaler))
    up = "../" * len(base.relative_to(service.root).parts)
    kustomization = {
        "namespace": service.namespace,
        "resources": ["app.json", "stub.json", "scaler.yaml"],
        "components": [f"{up}k8s/sidecar/shared-process-namespace"],
    }
    (base / "kustomization.yaml").write_text(json.dumps(kustomization))
    patch = pods.keep_driver(outer, "plain").name
    patched = {"resources": ["../base"], "patches": [{"path": patch, "target": {"kind": "Deployment"}}]}
    (outer / "kustomization.yaml").write_text(json.dumps(patched))
    kubectl("apply", "-k", str(outer))
    pod = pods.first_pod(service, "plain")
    wait_for("the sidecar's GPU", lambda: gpus(service, pod), 60)
    return pod


def work(service: Service, pod: str) -> None:
    """Half a core from now on, in this pod only."""
    kubectl("exec", "-n", service.namespace, pod, "-c", "app", "--", "touch", "/scratch/busy")


def rest(service: Service, pod: str) -> None:
    """Idle again."""
    script = "import os; os.remove('/scratch/busy')"
    kubectl("exec", "-n", service.namespace, pod, "-c", "app", "--", "python", "-c", script)


def gpus(service: Service, pod: str) -> set[str]:
    """UUIDs of the GPUs that a pod publishes."""
    samples = service.own_metrics(pod)
    return {
        name.split('uuid="')[1].split('"')[0] for name in samples if name.startswith("nvidia_gpu_busy_seconds_total")
    }
