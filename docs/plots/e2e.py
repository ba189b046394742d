"""Plot a recorded run: python docs/plots/e2e.py build/e2e/walk/record.json docs/plots/walk.svg"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def plot(record: Path, picture: Path) -> None:
    """The load, the metrics as the HPA saw them, and the pods, over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = json.loads(record.read_text())
    times = [row["t"] for row in run["rows"]]
    matplotlib.rcParams["svg.hashsalt"] = "gpuscale"  # the same drawing is the same file
    figure, (load, above, below) = pyplot.subplots(3, sharex=True, figsize=(9, 6), height_ratios=(1, 2, 1))
    load.plot(times, [float("nan") if row["load"] is None else row["load"] for row in run["rows"]], color="tab:green")
    load.set_ylabel("requests\nin flight")
    for metric in sorted({name for row in run["rows"] for name in row["metrics"]}):
        # A value that was not known leaves a gap.
        above.plot(times, [row["metrics"].get(metric, float("nan")) for row in run["rows"]], label=metric)
    below.step(times, [row["desired"] for row in run["rows"]], where="post", label="pods wanted")
    below.step(times, [row["ready"] for row in run["rows"]], where="post", label="pods ready")
    for mark in run["marks"]:
        for axis in (load, above, below):
            axis.axvline(mark["t"], color="grey", linestyle=":")
        load.text(mark["t"], load.get_ylim()[1], f" {mark['text']}", fontsize=8, va="top")
    above.set_ylabel("as the HPA sees it")
    below.set(xlabel="seconds", ylabel="pods", ylim=(0, None))
    above.legend(loc="center right")
    below.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    plot(Path(sys.argv[1]), Path(sys.argv[2]))
