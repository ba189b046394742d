"""The files that are made from a specification: those of k8s/, for the reference service.

``python -m gpuscale.hpa.tree k8s`` writes them; a test holds the folder equal to this.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuscale.hpa.adapter_rules import adapter_config, helm_values
from gpuscale.hpa.autoscaler import autoscaler
from gpuscale.hpa.dashboard import dashboard
from gpuscale.hpa.emit import documents
from gpuscale.hpa.network import network_policy
from gpuscale.hpa.operator import pod_monitor, prometheus_rule
from gpuscale.hpa.prometheus_rules import rule_file
from gpuscale.hpa.scaled_object import scaled_object
from gpuscale.hpa.sidecar import claim_template, sidecar_patch
from gpuscale.hpa.specification import Specification

HEADER = "Made by `gpuscale render` (python -m gpuscale.hpa.tree k8s): change gpuscale/hpa/, not this file."

REFERENCE = Specification("bert-intent-detection", "duty-cycle", "20", name="gpu-hpa")
"""The HPA of the contract."""
RECOMMENDED = replace(REFERENCE, signal="requests-in-flight", target="8", name="requests-hpa")
FROM_ZERO = replace(RECOMMENDED, minimum=0, counted_by="bert-intent-gateway", name="from-zero-hpa")


def manifests(specification: Specification, scaler: str) -> list[Any]:
    """What belongs to one Deployment: its HPA (``adapter``) or ScaledObject (``keda``), and the sidecar's patch."""
    found = [autoscaler(specification) if scaler == "adapter" else scaled_object(specification)]
    if specification.sidecar is not None:
        if specification.sidecar == "dra":
            found.append(claim_template(specification))
        found.append(sidecar_patch(specification, specification.sidecar, specification.deployment))
    return found


def shared_pieces(specification: Specification) -> dict[str, Any]:
    """What a cluster needs once, by the name of the piece."""
    return {
        "prometheus-rules": rule_file(),
        "prometheus-rule": prometheus_rule(specification),
        "pod-monitor": pod_monitor(specification),
        "adapter-config": adapter_config(),
        "adapter-values": helm_values(),
        "network-policy": network_policy(specification),
        "dashboard": dashboard(),
    }


def files() -> dict[str, str]:
    """Path under k8s/ and text of each file that is made."""
    pieces = shared_pieces(REFERENCE)
    container = REFERENCE.deployment
    made: dict[str, Any] = {
        "hpa/gpu/hpa.yaml": autoscaler(REFERENCE),
        "hpa/recommended/hpa.yaml": autoscaler(RECOMMENDED),
        "hpa/from-zero/hpa.yaml": autoscaler(FROM_ZERO),
        "keda/gpu/scaledobject.yaml": scaled_object(REFERENCE),
        "keda/recommended/scaledobject.yaml": scaled_object(RECOMMENDED),
        "rules/gpuscale.rules.yaml": pieces["prometheus-rules"],
        "operator/prometheusrule.yaml": pieces["prometheus-rule"],
        "operator/podmonitor.yaml": pieces["pod-monitor"],
        "prometheus-adapter/config.yaml": pieces["adapter-config"],
        "prometheus-adapter/values.yaml": pieces["adapter-values"],
        "network-policy/networkpolicy.yaml": pieces["network-policy"],
        "sidecar/shared-process-namespace/patch.yaml": sidecar_patch(REFERENCE, "shared-process-namespace"),
        "sidecar/dra/patch.yaml": sidecar_patch(REFERENCE, "dra", container),
        "sidecar/dra/claim.yaml": claim_template(REFERENCE),
    }
    texts = {path: documents([manifest], HEADER) for path, manifest in made.items()}
    texts["grafana/gpuscale.json"] = json.dumps(pieces["dashboard"], indent=2) + "\n"
    return texts


def write(folder: Path) -> None:
    """Write every file under ``folder``."""
    for path, text in files().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
