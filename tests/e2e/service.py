"""The reference service in a namespace of its own: our manifests, with an overlay that stands for the GPU."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.e2e.kube import get, kubectl, pods, wait_for

NAME = "bert-intent-detection"
SELECTOR = f"app={NAME}"
STUB = "/nvml"


class Service:
    """What a test applies and asks. GPUs are the stub's, whose duty cycle is the container's own CPU time."""

    def __init__(self, namespace: str, root: Path, output: Path, library: str, state: str) -> None:
        self.namespace, self.root, self.output = namespace, root, output
        self._library, self._state = library, state

    def apply(self, *pieces: str, cpu: str | None = None, patches: list[dict[str, Any]] | None = None) -> None:
        """Apply pieces of k8s/ with the overlay of the tests and wait until the first pod is ready."""
        folder = self.output / "overlay"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stub.json").write_text(json.dumps(self._stub(cpu)))
        (folder / "patch.json").write_text(json.dumps(_overlay(cpu)))
        up = "../" * (len(folder.relative_to(self.root).parts))
        deployment = {"kind": "Deployment"}
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": self.namespace,
            "resources": ["stub.json", *(f"{up}k8s/{piece}" for piece in pieces)],
            "patches": [{"path": "patch.json", "target": deployment}, *(patches or [])],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
        kubectl("apply", "-k", str(folder))
        wait_for("the first pod's readiness", lambda: self.ready() >= 1, 180)

    def ready(self) -> int:
        """Pods that are ready."""
        return len(pods(self.namespace, SELECTOR))

    def address(self) -> str:
        """Host and port of the Service on this machine: its node port (the walk's 8500 behind a load balancer)."""
        service = get("service", "-n", self.namespace, f"{NAME}-svc")
        return f"127.0.0.1:{service['spec']['ports'][0]['nodePort']}"

    def predict(self, query: str) -> str:
        """What ``curl …/predict?query=…`` prints."""
        url = f"http://{self.address()}/predict?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    def hey(self, *options: str) -> subprocess.Popen[str]:
        """Load from ``hey`` on the walk's path, in the background."""
        command = ["hey", *options, f"http://{self.address()}/predict?query=music"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def own_metrics(self, pod: str) -> dict[str, float]:
        """The samples of a pod's own ``/metrics`` by name with labels."""
        proxy = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:9445/proxy/metrics"
        samples = {}
        for line in kubectl("get", "--raw", proxy).splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def _stub(self, cpu: str | None) -> dict[str, Any]:
        cores = float(cpu.removesuffix("m")) / 1000 if cpu else 1.0
        return self.stub_map(self._state.replace("CORES", str(cores)))

    def stub_map(self, state: str) -> dict[str, Any]:
        """The ConfigMap with the driver's stand-in and its state."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "nvml-stub"},
            "binaryData": {"libnvidia-ml.so.1": self._library},
            "data": {"state": state},
        }


def _overlay(cpu: str | None) -> dict[str, Any]:
    """The driver's library and a device in each pod, the latter in a file that a test can change."""
    locked = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mount = {"name": "nvml", "mountPath": STUB}
    copy = f"cp /stub/libnvidia-ml.so.1 {STUB}/; sed s/HOSTNAME/$HOSTNAME/ /stub/state > {STUB}/state"
    init = {
        "name": "driver",
        "image": "docker.io/library/busybox:1.36",
        "command": ["sh", "-c", copy],
        "securityContext": locked,
        "volumeMounts": [mount, {"name": "stub", "mountPath": "/stub"}],
    }
    resources = {"requests": {"cpu": "100m"}, "limits": {"cpu": cpu}} if cpu else {"requests": {"cpu": "100m"}}
    main = {
        "name": NAME,
        "env": [
            {"name": "LD_LIBRARY_PATH", "value": STUB},
            {"name": "NVML_STUB_STATE", "value": f"{STUB}/state"},
            {"name": "BERT_THREADS", "value": "1"},
        ],
        "resources": resources,
        "volumeMounts": [mount],
    }
    volumes = [{"name": "nvml", "emptyDir": {}}, {"name": "stub", "configMap": {"name": "nvml-stub"}}]
    pod = {"initContainers": [init], "containers": [main], "volumes": volumes}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {"template": {"spec": pod}},
    }
