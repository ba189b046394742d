"""Writes docs/metrics.md from the catalogue; a test holds the two together.

python docs/make_metrics_table.py
"""

from __future__ import annotations

from pathlib import Path

from gpuscale.catalogue import CATALOGUE

HEAD = """# The series on a pod's metrics port
Made from `gpuscale/catalogue.py` by `python docs/make_metrics_table.py`; do not edit by hand. Text and OpenMetrics
formats, by the scraper's `Accept` header. A value that is not known is absent, never 0. GPU series of a MIG instance
have its own `uuid`, the parent's `minor_number`, and its profile in `name`. A simulated GPU says so in `name` and in
`gpuscale_info`.

| series | type | labels | meaning | OpenTelemetry |
|---|---|---|---|---|
"""


def page() -> str:
    """The page as it must be."""
    rows = []
    for series in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in series.labels)
        rows.append(f"| `{series.name}` | {series.type} | {labels} | {series.help} | {series.otel} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    (Path(__file__).parent / "metrics.md").write_text(page())
