"""Deployments of the tests' own, which pass the `restricted` standard and have the driver's stand-in mounted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuscale.hpa.operator import MONITORED_LABEL
from gpuscale.hpa.sidecar import scrape_annotations
from gpuscale.hpa.specification import Specification
from gpuscale.settings import DEFAULT_PORT
from tests.e2e.kube import get, kubectl, wait_for
from tests.e2e.kube import pods as pods_of
from tests.e2e.service import STUB, Service

Manifest = dict[str, Any]
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
LOCKED_CONTAINER = {"imagePullPolicy": "IfNotPresent", "securityContext": LOCKED}
BUSYBOX = "docker.io/library/busybox:1.36"
NVML = {"name": "nvml", "mountPath": STUB}
STUB_ENV = [{"name": "LD_LIBRARY_PATH", "value": STUB}, {"name": "NVML_STUB_STATE", "value": f"{STUB}/state"}]


def deployment(name: str, containers: Sequence[Manifest], published: bool = False, **pod: Any) -> Manifest:
    """One pod of these containers; ``published`` where one of them has our endpoint (else a sidecar brings it).

    The driver's stand-in comes from the ConfigMap ``NAME-stub`` (:meth:`Service.stub_map`).
    """
    metadata: Manifest = {"labels": {"app": name} | (MONITORED_LABEL if published else {})}
    if published:
        metadata["annotations"] = scrape_annotations(DEFAULT_PORT)
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [driver()],
        "containers": [{**LOCKED_CONTAINER, **container} for container in containers],
        "volumes": [
            {"name": "nvml", "emptyDir": {}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "stub", "configMap": {"name": f"{name}-stub"}},
        ],
        **pod,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": metadata, "spec": spec}},
    }


def driver() -> Manifest:
    """Puts the driver's stand-in where the containers find it, with a state that a test can change."""
    return {
        "name": "driver",
        "image": BUSYBOX,
        "command": [
            "sh",
            "-c",
            f"cp /stub/libnvidia-ml.so.1 {STUB}/; sed s/HOSTNAME/$HOSTNAME/ /stub/state > {STUB}/state",
        ],
        "securityContext": LOCKED,
        "volumeMounts": [NVML, {"name": "stub", "mountPath": "/stub"}],
    }


def node_port(name: str, port: int) -> Manifest:
    """A Service by which this machine reaches a Deployment's pods."""
    spec = {"type": "NodePort", "selector": {"app": name}, "ports": [{"name": "http", "port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def config_map(name: str, data: dict[str, str]) -> Manifest:
    """Files for a container."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def rendered(specification: Specification, scaler: str = "adapter") -> str:
    """What ``gpuscale render`` prints for a Deployment of ours."""
    from gpuscale.hpa.emit import documents
    from gpuscale.hpa.tree import manifests

    return documents(manifests(specification, scaler))


def apply(service: Service, *manifests: Manifest | str) -> None:
    """Apply manifests, or YAML of them, in the test's namespace."""
    for manifest in manifests:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        kubectl("apply", "-n", service.namespace, "-f", "-", given=text)


def first_pod(service: Service, name: str, seconds: float = 120) -> str:
    """The name of the Deployment's pod once it is ready."""
    found = wait_for(f"a pod of {name}", lambda: pods_of(service.namespace, f"app={name}"), seconds)
    return str(found[0]["metadata"]["name"])


def replicas(service: Service, name: str) -> int:
    """The pods that are wanted of a Deployment."""
    return int(get("deployment", "-n", service.namespace, name)["spec"]["replicas"])


def set_state(service: Service, pod: str, container: str, state: str) -> None:
    """Write the stub's state in a pod anew, as one file in place of the other."""
    script = "import os, sys; open('/nvml/new', 'w').write(sys.argv[1]); os.replace('/nvml/new', '/nvml/state')"
    kubectl("exec", "-n", service.namespace, pod, "-c", container, "--", "python", "-c", script, state)


def keep_driver(folder: Path, name: str) -> Path:
    """A patch that mounts the driver's stand-in into our sidecar, for kustomize."""
    sidecar = {"name": "gpuscale", "env": STUB_ENV, "volumeMounts": [NVML]}
    spec = {"template": {"spec": {"initContainers": [{"name": "driver"}, sidecar]}}}
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
    path = folder / "driver.json"
    path.write_text(json.dumps(patch))
    return path
