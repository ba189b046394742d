"""The reference service in a namespace of its own: our manifests, with an overlay that stands for the GPU."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.kube import get, kubectl, pods, wait_for

NAME = "bert-intent-detection"
SELECTOR = f"app={NAME}"
STUB = "/nvml"
IDLE = 0.015
"""Cores that the probes and the sampler keep busy: a GPU would not know of them, so the stub leaves them out."""
Patch = Sequence[dict[str, Any]]


class Load:
    """``hey`` at work, until :meth:`end` or the end of a ``with``."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(["hey", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float, early: bool = False) -> str:
        """What it says when it is done; ``early`` tells it to be done now (it prints its summary on SIGINT)."""
        if early:
            self._process.send_signal(signal.SIGINT)
        said, _ = self._process.communicate(timeout=seconds)
        return said


def answers(said: str) -> dict[str, int]:
    """How many answers of each status ``hey`` counted, ``error`` for requests that had none."""
    counts = {status: int(number) for status, number in re.findall(r"\[(\d{3})\]\s+(\d+) responses", said)}
    failed = said.partition("Error distribution:")[2]
    errors = sum(int(number) for number in re.findall(r"^\s*\[(\d+)\]", failed, re.MULTILINE))
    return {**counts, **({"error": errors} if errors else {})}


class Service:
    """What a test applies and asks. GPUs are the stub's, whose duty cycle is the container's own CPU time."""

    def __init__(self, namespace: str, root: Path, output: Path, library: str, state: str) -> None:
        self.namespace, self.root, self.output = namespace, root, output
        self._library, self._state = library, state

    def limit_gpus(self, number: int) -> None:
        """As a cluster with no more free: a load on two cores would want all, and tests run side by side."""
        quota = {"name": "gpus", "namespace": self.namespace}
        spec = {"hard": {"requests.nvidia.com/gpu": str(number)}}
        manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": quota, "spec": spec}
        kubectl("apply", "-f", "-", given=json.dumps(manifest))

    def apply(self, *pieces: str, cpu: str | None = None, hpa: Patch = (), pods: int | None = None) -> None:
        """Apply pieces of k8s/ with the overlay of the tests, and wait for the first pod unless ``pods`` is 0.

        ``hpa``: JSON patches of the HPA, where its own times would be too long for a test.
        """
        folder = self.output / "overlay"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stub.json").write_text(json.dumps(self._stub(cpu)))
        (folder / "patch.json").write_text(json.dumps(_overlay(cpu, pods)))
        up = "../" * (len(folder.relative_to(self.root).parts))
        patches: list[dict[str, Any]] = [{"path": "patch.json", "target": {"kind": "Deployment"}}]
        if hpa:
            patches.append({"patch": json.dumps(hpa), "target": {"kind": "HorizontalPodAutoscaler"}})
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": self.namespace,
            "resources": ["stub.json", *(f"{up}k8s/{piece}" for piece in pieces)],
            "patches": patches,
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
        kubectl("apply", "-k", str(folder))
        if pods != 0:
            wait_for("the first pod's readiness", lambda: self.ready() >= 1, 240)

    def ready(self) -> int:
        """Pods that are ready."""
        return len(pods(self.namespace, SELECTOR))

    def address(self, name: str = f"{NAME}-svc") -> str:
        """Host and port by which this machine reaches a Service: its load balancer's, else its node port.

        A node's rules follow a pod's readiness some time later: it waits until a connection is accepted.
        """

        def reached() -> str | None:
            for host, port in self._ways_to(name):
                with contextlib.suppress(OSError):
                    socket.create_connection((host, port), timeout=2).close()
                    return f"{host}:{port}"
            return None

        return str(wait_for(f"a connection to {name}", reached, 60, every=0.2))

    def _ways_to(self, name: str) -> Iterator[tuple[str, int]]:
        """The node port is on the loopback where the cluster's node is this machine, else on the node (kind)."""
        service = get("service", "-n", self.namespace, name)
        port = service["spec"]["ports"][0]
        given = service["status"].get("loadBalancer", {}).get("ingress") or []
        if given:
            yield given[0].get("ip") or given[0]["hostname"], port["port"]
            return
        yield "127.0.0.1", port["nodePort"]
        node = get("nodes")["items"][0]["status"]["addresses"]
        yield next(one["address"] for one in node if one["type"] == "InternalIP"), port["nodePort"]

    def predict(self, query: str) -> str:
        """What ``curl …/predict?query=…`` prints."""
        url = f"http://{self.address()}/predict?query={urllib.parse.quote(query)}"
        return subprocess.run(
            ["curl", "-sS", "--max-time", "20", url], capture_output=True, text=True, check=True
        ).stdout

    def hey(self, *options: str) -> Load:
        """Load from ``hey`` on the walk's path, in the background."""
        return Load(*options, f"http://{self.address()}/predict?query=music")

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
        state = self._state.replace("CORES", f"{cores - IDLE:g}").replace("IDLE", f"{IDLE:g}")
        return self.stub_map(state, "nvml-stub")

    def stub_map(self, state: str, name: str) -> dict[str, Any]:
        """The ConfigMap with the driver's stand-in and its state."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "binaryData": {"libnvidia-ml.so.1": self._library},
            "data": {"state": state},
        }


def _overlay(cpu: str | None, replicas: int | None) -> dict[str, Any]:
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
        "spec": {"template": {"spec": pod}} | ({} if replicas is None else {"replicas": replicas}),
    }
