"""The sidecar as a patch on any Deployment: a native sidecar, an init container that goes on running."""

from __future__ import annotations

from typing import Any

from gpuscale import __version__
from gpuscale.hpa.emit import Because, Manifest
from gpuscale.hpa.operator import MONITORED_LABEL
from gpuscale.hpa.specification import Specification

IMAGE = f"gpuscale-sidecar:{__version__}"
CONTAINER = "gpuscale"

_ALWAYS = """\
A native sidecar (Kubernetes 1.29 and later): it starts before the app, ends after it, and a Job does not wait
for it."""
_SHARED = """\
The sidecar finds out which GPUs the app was given from the app's own process: it must see it, and run as the
same user. It sees the app's environment and files with that; where that is too much, take the variant dra."""
_VISIBLE = """\
Lets NVIDIA's container toolkit put the driver's library and device nodes into this container without a GPU being
counted for it. The sidecar publishes those of the app only."""
_CLAIM = """\
Both containers hold the same claim, so both see the same GPU and neither sees the other's processes. It takes the
place of nvidia.com/gpu in the app's limits; with both, the pod would be given two GPUs."""
ANNOTATIONS = {"prometheus.io/scrape": "true", "prometheus.io/path": "/metrics"}


def scrape_annotations(port: int) -> Manifest:
    """What the small Prometheus of k8s/prometheus scrapes a pod by."""
    return {**ANNOTATIONS, "prometheus.io/port": str(port)}


def sidecar_patch(specification: Specification, variant: str, app_container: str = "app") -> Manifest:
    """The part of a Deployment that the sidecar adds; ``kubectl apply --server-side`` merges it.

    ``app_container`` is named by the variant ``dra`` only, which gives the claim to it too.
    """
    pod: dict[str, Any] = {}
    container = _container(specification)
    if variant == "shared-process-namespace":
        pod["shareProcessNamespace"] = Because(_SHARED, True)
        container["env"] = [
            Because(_VISIBLE, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}),
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
        ]
        pod["initContainers"] = [container]
    else:
        claim = [{"name": "gpu"}]
        container["resources"]["claims"] = claim
        pod["resourceClaims"] = Because(_CLAIM, [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}])
        pod["initContainers"] = [container]
        pod["containers"] = [{"name": app_container, "resources": {"claims": claim}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": specification.metadata(specification.deployment),
        "spec": {
            "template": {
                "metadata": {"labels": dict(MONITORED_LABEL), "annotations": scrape_annotations(specification.port)},
                "spec": pod,
            }
        },
    }


def claim_template(specification: Specification) -> Manifest:
    """One GPU by Dynamic Resource Allocation (Kubernetes 1.34 and later, with NVIDIA's DRA driver)."""
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": specification.metadata("one-gpu"),
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def _container(specification: Specification) -> dict[str, Any]:
    probe = {"port": "metrics", "path": "/healthz"}
    return {
        "name": CONTAINER,
        "image": IMAGE,
        "restartPolicy": Because(_ALWAYS, "Always"),
        "command": ["gpuscale", "sidecar", "--port", str(specification.port)],
        "ports": [{"name": "metrics", "containerPort": specification.port}],
        "livenessProbe": {"httpGet": probe, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}, "limits": {"memory": "96Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
