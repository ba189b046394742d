"""An app that knows nothing of gpuscale, scaled by what the sidecar beside it publishes."""

from __future__ import annotations

import json
from typing import Any

from gpuscale import __version__
from tests.e2e.kube import Watch, custom, kubectl, pods, wait_for
from tests.e2e.service import Service

LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
# Burns a third of a core while /work/busy is there: nothing of gpuscale, Python's own loop.
APP = """\
import os, time
while True:
    end = time.monotonic() + (0.03 if os.path.exists('/work/busy') else 0)
    while time.monotonic() < end:
        pass
    time.sleep(0.07)
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
                    {"name": "work", "mountPath": "/work"},
                    # The device node that the container toolkit would put here: its name is what tells.
                    {"name": "stub", "mountPath": "/dev/nvidia0", "subPath": "state", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "nvml", "emptyDir": {}},
            {"name": "work", "emptyDir": {}},
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


def test_sidecar(service: Service) -> None:
    """Of the node's two GPUs the sidecar shows the one that the app was given, and the HPA scales by it."""
    # The other GPU is always busy: were it counted, the mean would be 50 and more.
    state = (
        "gpus 2\ngpu.0.uuid GPU-own\ngpu.0.load 0 follow visible cores=1\n"
        "gpu.1.uuid GPU-of-another-pod\ngpu.1.util 100\n"
    )
    base, outer = service.output / "overlay/base", service.output / "overlay/driver"
    base.mkdir(parents=True)
    outer.mkdir()
    (base / "app.json").write_text(json.dumps(_app()))
    (base / "stub.json").write_text(json.dumps(service.stub_map(state)))
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
    pod = found[0]["metadata"]["name"]
    own = wait_for("the sidecar's GPU", lambda: _gpus(service, pod), 60)
    assert own == {"GPU-own"}, "the sidecar must show the app's GPU and no other"
    wait_for("an idle duty cycle", lambda: custom(service.namespace, "duty_cycle_current")[pod] < 10, 150)
    with Watch(service.namespace, "plain", "plain", service.output) as watch:
        kubectl("exec", "-n", service.namespace, pod, "-c", "app", "--", "touch", "/work/busy")
        wait_for("a second pod", lambda: len(pods(service.namespace, "app=plain")) >= 2, 180)
    assert max(watch.replicas()) >= 2


def _gpus(service: Service, pod: str) -> set[str]:
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
