"""Draw how a metric gets from a pod to the HPA: python docs/plots/flow.py docs/plots/flow.svg"""

from __future__ import annotations

import sys
from pathlib import Path

BOXES = {
    "pod": (0.5, 2.0, "Pod\n\napp + gpuscale\nor gpuscale sidecar\n\n:9445/metrics\ncounters"),
    "prometheus": (4.0, 2.0, "Prometheus\n\nscrape 5 s\nrules 5 s:\nrate over 1 min,\none series a pod"),
    "adapter": (7.5, 3.3, "prometheus-adapter\n\nlists series every 15 s\ncustom + external API"),
    "keda": (7.5, 0.7, "KEDA\n\nasks every 15 s\nexternal API"),
    "hpa": (11.0, 2.0, "HPA controller\n\nlooks every 15 s\ndesired pods"),
}
ARROWS = (
    ("pod", "prometheus", "busy seconds,\nin-flight seconds,\n…"),
    ("prometheus", "adapter", "gpuscale:*_current"),
    ("prometheus", "keda", "gpuscale:*_current"),
    ("adapter", "hpa", "*_current"),
    ("keda", "hpa", "s0-prometheus"),
)
WIDTH, HEIGHT = 2.4, 1.9


def draw(picture: Path) -> None:
    """Boxes and arrows; periods are those of k8s/ and Kubernetes' defaults."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gpuscale"  # the same drawing is the same file
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, axis = pyplot.subplots(figsize=(13, 5.2))
    for x, y, text in BOXES.values():
        box = FancyBboxPatch((x, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle="round,pad=0.05", fc="#eef3fb", ec="#345")
        axis.add_patch(box)
        axis.text(x + WIDTH / 2, y, text, ha="center", va="center", fontsize=9)
    for source, target, label in ARROWS:
        start = (BOXES[source][0] + WIDTH + 0.08, BOXES[source][1])
        end = (BOXES[target][0] - 0.08, BOXES[target][1])
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#345"})
        lift = 0.45 if source == "pod" else 0.0  # a label as wide as its arrow stands above it
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + lift)
        paper = {"fc": "white", "ec": "none", "pad": 1}
        axis.text(*middle, label, ha="center", va="center", fontsize=6.5, color="#345", bbox=paper)
    # Back along three straight lines under the boxes.
    axis.plot((12.2, 12.2, 1.7), (0.95, -0.8, -0.8), color="#a33", linewidth=1)
    axis.annotate("", (1.7, 0.95), (1.7, -0.8), arrowprops={"arrowstyle": "-|>", "color": "#a33"})
    axis.text(7.0, -1.15, "spec.replicas of the Deployment", ha="center", fontsize=9, color="#a33")
    axis.set(xlim=(0.2, 13.7), ylim=(-1.4, 4.6))
    axis.axis("off")
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
