"""Print the manifests that scale your own Deployment, made from the same specification as those in k8s/.

gpuscale render --deployment chat --signal requests-in-flight --target 8 | kubectl apply --server-side -f -
gpuscale render --deployment chat --piece adapter-values > values.yaml
"""

from __future__ import annotations

import argparse

PIECES = (
    "prometheus-rules", "prometheus-rule", "pod-monitor", "adapter-config", "adapter-values", "network-policy",
    "dashboard",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gpuscale render``; what they may be is checked by the specification."""
    parser.add_argument("--deployment", required=True, help="the Deployment to scale")
    parser.add_argument(
        "--signal",
        default="duty-cycle",
        metavar="SIGNAL",
        help="duty-cycle (default), requests-in-flight (recommended) or memory (scales up only)",
    )
    parser.add_argument(
        "--target", default="20", help="per pod: percent, requests or bytes (20, 500m, 20Gi); default 20"
    )
    parser.add_argument("--min", type=int, default=1, dest="minimum", help="fewest pods, default 1")
    parser.add_argument("--max", type=int, default=10, dest="maximum", help="most pods, default 10")
    parser.add_argument(
        "--for",
        choices=("adapter", "keda"),
        default="adapter",
        dest="scaler",
        help="an HPA that asks prometheus-adapter (default), or KEDA's ScaledObject",
    )
    parser.add_argument(
        "--sidecar",
        nargs="?",
        const="shared-process-namespace",
        metavar="VARIANT",
        help="add the sidecar to the Deployment: shared-process-namespace (default) or dra",
    )
    parser.add_argument("--name", help="of the HPA or ScaledObject; default: the Deployment's")
    parser.add_argument("--namespace", help="default: none in the manifests, `default` in queries")
    parser.add_argument(
        "--duty-cycle-limit",
        type=int,
        default=80,
        metavar="PERCENT",
        help="beside requests-in-flight: add pods, too, above this duty cycle (default 80)",
    )
    parser.add_argument("--counted-by", metavar="DEPLOYMENT", help="the gateway that counts the requests; for --min 0")
    parser.add_argument("--prometheus", default="http://prometheus.monitoring:9090", help="where KEDA finds Prometheus")
    parser.add_argument(
        "--piece",
        choices=PIECES,
        help="print instead what a cluster needs once: rules, monitors, the adapter's configuration, dashboard",
    )


def run(options: argparse.Namespace) -> int:
    """Print YAML (the dashboard: JSON); ConfigurationError for what cannot be."""
    import json

    from gpuscale.hpa.emit import documents
    from gpuscale.hpa.specification import Specification
    from gpuscale.hpa.tree import manifests, shared_pieces

    specification = Specification(
        deployment=options.deployment,
        signal=options.signal,
        target=options.target,
        minimum=options.minimum,
        maximum=options.maximum,
        name=options.name,
        namespace=options.namespace,
        duty_cycle_limit=options.duty_cycle_limit,
        counted_by=options.counted_by,
        sidecar=options.sidecar,
        prometheus=options.prometheus,
    )
    if options.piece == "dashboard":
        print(json.dumps(shared_pieces(specification)["dashboard"], indent=2))
    elif options.piece:
        print(documents([shared_pieces(specification)[options.piece]]), end="")
    else:
        print(documents(manifests(specification, options.scaler)), end="")
    return 0
