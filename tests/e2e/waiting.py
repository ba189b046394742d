"""A service whose requests wait and cost next to nothing, with two workers that share gpuscale's endpoint."""

from __future__ import annotations

from gpuscale import __version__
from gpuscale.hpa.specification import Specification
from tests.e2e import pods
from tests.e2e.kube import kubectl
from tests.e2e.service import Load, Service

NAME = "waiting"
PORT = 8080
APP = """\
import asyncio
from fastapi import FastAPI
import gpuscale

app = FastAPI()
gpuscale.instrument(app)

@app.get("/readyz")
async def readyz() -> str:
    return "ready"

@app.get("/wait/{seconds}")
async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"
"""
STATE = "gpus 1\ngpu.0.uuid GPU-HOSTNAME\ngpu.0.load 0 follow cgroup cores=1\n"
_KILL_A_WORKER = """\
import os, signal
children = open('/proc/1/task/1/children').read().split()
workers = [pid for pid in children if b'spawn_main' in open(f'/proc/{pid}/cmdline', 'rb').read()]
os.kill(int(workers[0]), signal.SIGKILL)
print(workers[0])
"""


def manifests(gpu: bool = True) -> list[pods.Manifest]:
    """Its Deployment, Service and program; ``gpu`` says whether a pod holds one of the node's."""
    app = {
        "name": NAME,
        "image": f"bert-intent:{__version__}",  # for its FastAPI and uvicorn
        "command": ["uvicorn", "--app-dir", "/app", "app:app", "--host", "0.0.0.0", "--port", str(PORT)],
        "args": ["--workers", "2", "--log-level", "warning"],
        "env": pods.STUB_ENV,
        "ports": [{"name": "http", "containerPort": PORT}, {"name": "metrics", "containerPort": 9445}],
        "resources": {"requests": {"cpu": "50m"}} | ({"limits": {"nvidia.com/gpu": "1"}} if gpu else {}),
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 2},
        "volumeMounts": [pods.NVML, {"name": "app", "mountPath": "/app"}],
    }
    made = pods.deployment(NAME, [app], published=True)
    made["spec"]["template"]["spec"]["volumes"].append({"name": "app", "configMap": {"name": "app"}})
    return [pods.config_map("app", {"app.py": APP}), made, pods.node_port(NAME, PORT)]


def apply(service: Service, scaler: str | None = "adapter", most: int = 2, gpu: bool = True) -> str:
    """Apply it all, scaled as recommended unless ``scaler`` is None; the name of its first pod."""
    if scaler is not None:
        specification = Specification(NAME, "requests-in-flight", "8", maximum=most, namespace=service.namespace)
        pods.apply(service, pods.rendered(specification, scaler))
    pods.apply(service, service.stub_map(STATE, f"{NAME}-stub"), *manifests(gpu))
    return pods.first_pod(service, NAME)


def load(service: Service, seconds: int, clients: int = 20) -> Load:
    """So many requests in flight, each waiting for half a second."""
    url = f"http://{service.address(NAME)}/wait/0.5"
    return Load("-z", f"{seconds}s", "-c", str(clients), url)


def kill_a_worker(service: Service, pod: str) -> str:
    """SIGKILL to one of uvicorn's two workers in this pod; its PID there."""
    where = ("-n", service.namespace, pod, "-c", NAME)
    return kubectl("exec", *where, "--", "python", "-c", _KILL_A_WORKER).strip()
