"""An app that knows nothing of gpuscale, with our sidecar beside it and an HPA that `gpuscale render` made."""

from __future__ import annotations

import json
from typing import Any

from gpuscale import __version__
from tests.e2e.kube import kubectl, pods, wait_for
from tests.e2e.service import Service

STATE = """\
gpus 2
gpu.0.uuid GPU-own
gpu.0.load 0 follow visible cores=1
gpu.1.uuid GPU-of-another-pod
gpu.1.util 100
"""
"""The node's GPUs. The other one is always busy: were it counted, the mean would be 50 and more."""
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
# Burns 50 ms of CPU time in each 100 ms while /scratch/busy is there: nothing of gpuscale, Python's own loop.
APP = """\
import os, time
while True:
    end = time.process_time() + (0.05 if os.path.exists('/scratch/busy') else 0)
    while time.process_time() < end:
        pass
    time.sleep(0.05)
"""


def _app() -> dict[str, Any]:
    """A plain Deployment; the container toolkit's part (devices, NVIDIA_VISIBLE_DEVICES) is played by the env."""
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [
            {
                "name": "driver",
                "image": "docker.io/library/busybox:1.36",
                "command": ["sh", "-c", "cp /stub/* /nvml/"],
                "securityContext": LOCKED,
                "volumeMounts": [{"name": "nvml", "mountPath": "/nvml"}, {"name": "stub", "mountPath": "/stub"}],
            }
        ],
        "containers": [
            {
                "name": "app",
                "image": "gpuscale-sidecar:" + __version__,  # for its Python
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-c", APP],
                "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "GPU-own"}],
                "resources": {"requests": {"cpu": "50m"}, "limits": {"nvidia.com/gpu": "1"}},
                "securityContext": LOCKED,
                "volumeMounts": [
                    {"name": "scratch", "mountPath": "/scratch"},
                    # The device node that the container toolkit would put here: its name is what tells.
                    {"name": "stub", "mountPath": "/dev/nvidia0", "subPath": "state", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "nvml", "emptyDir": {}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "stub", "configMap": {"name": "nvml-stub"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plain"},
        "spec": {
            "selector": {"matchLabels": {"app": "plain"}},
            "template": {"metadata": {"labels": {"app": "plain"}}, "spec": pod},
        },
    }


def _driver_in_sidecar() -> dict[str, Any]:
    sidecar = {
        "name": "gpuscale",
        "env": [
            {"name": "LD_LIBRARY_PATH", "value": "/nvml"},
            {"name": "NVML_STUB_STATE", "value": "/nvml/state"},
        ],
        "volumeMounts": [{"name": "nvml", "mountPath": "/nvml"}],
    }
    patch = {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "plain"}}
    return {**patch, "spec": {"template": {"spec": {"initContainers": [{"name": "driver"}, sidecar]}}}}


def apply(service: Service) -> str:
    """Apply it all; the name of its first pod, whose sidecar has found a GPU."""
    base, outer = service.output / "overlay/base", service.output / "overlay/driver"
    base.mkdir(parents=True)
    outer.mkdir()
    (base / "app.json").write_text(json.dumps(_app()))
    (base / "stub.json").write_text(json.dumps(service.stub_map(STATE)))
    (base / "hpa.yaml").write_text(rendered("plain", "duty-cycle", "20"))
    up = "../" * len(base.relative_to(service.root).parts)
    kustomization = {
        "namespace": service.namespace,
        "resources": ["app.json", "stub.json", "hpa.yaml"],
        "components": [f"{up}k8s/sidecar/shared-process-namespace"],
    }
    (base / "kustomization.yaml").write_text(json.dumps(kustomization))
    (outer / "driver.json").write_text(json.dumps(_driver_in_sidecar()))
    patched = {"resources": ["../base"], "patches": [{"path": "driver.json", "target": {"kind": "Deployment"}}]}
    (outer / "kustomization.yaml").write_text(json.dumps(patched))
    kubectl("apply", "-k", str(outer))
    found = wait_for("the pod", lambda: pods(service.namespace, "app=plain"), 120)
    pod = str(found[0]["metadata"]["name"])
    wait_for("the sidecar's GPU", lambda: gpus(service, pod), 60)
    return pod


def work(service: Service, pod: str) -> None:
    """Half a core from now on, in this pod only."""
    kubectl("exec", "-n", service.namespace, pod, "-c", "app", "--", "touch", "/scratch/busy")


def gpus(service: Service, pod: str) -> set[str]:
    """UUIDs of the GPUs that a pod publishes."""
    samples = service.own_metrics(pod)
    return {
        name.split('uuid="')[1].split('"')[0] for name in samples if name.startswith("nvidia_gpu_busy_seconds_total")
    }


def rendered(deployment: str, signal: str, target: str) -> str:
    """What ``gpuscale render`` prints for a Deployment of ours."""
    from gpuscale.hpa.emit import documents
    from gpuscale.hpa.specification import Specification
    from gpuscale.hpa.tree import manifests

    return documents(manifests(Specification(deployment, signal, target), "adapter"))
