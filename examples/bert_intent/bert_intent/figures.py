"""The live figures of the page at ``/``: what gpuscale and the service know, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_intent.series import BATCH_SIZE, INFERENCE_SECONDS, QUEUE_DEPTH
from gpuscale.catalogue import REQUEST_DURATION, REQUESTS, REQUESTS_IN_FLIGHT

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from bert_intent.service import Service
    from gpuscale import GpuSnapshot, Metrics

PREDICT = "/predict"
GPU_VALUES = (
    "duty_cycle", "busy_seconds", "memory_used_bytes", "memory_total_bytes", "temperature_celsius",
    "power_milliwatts", "sample_age_seconds",
)  # fmt: skip
"""Fields of gpuscale's GpuReading, units in their names; ``duty_cycle`` is in percent."""


def live_figures(service: Service, metrics: Metrics[Any]) -> dict[str, Any]:
    """GPUs, requests and batches at this moment; a value that is not known is null. Calls no driver."""
    totals = _sums(metrics.registry)
    batches, inference = totals.get(f"{BATCH_SIZE}_count", 0.0), totals.get(f"{INFERENCE_SECONDS}_sum", 0.0)
    return {
        "state": service.lifecycle.state,
        "model": service.description,
        "metrics_url": metrics.metrics_url,
        "gpus": _gpus(metrics.snapshot()),
        "requests": {
            "in_flight": totals.get(REQUESTS_IN_FLIGHT.name),
            "ended": totals.get(REQUESTS.name, 0.0),
            "seconds": totals.get(f"{REQUEST_DURATION.name}_sum", 0.0),
        },
        "batches": {
            "waiting": totals.get(QUEUE_DEPTH),
            "ended": batches,
            "texts": totals.get(f"{BATCH_SIZE}_sum", 0.0),
            "seconds": inference,
        },
    }


def _gpus(snapshot: GpuSnapshot) -> dict[str, Any]:
    devices = []
    for gpu in snapshot.gpus:
        values = {name: getattr(gpu, name) for name in GPU_VALUES}
        devices.append({"name": gpu.identity.name, "uuid": gpu.identity.uuid, "up": gpu.up, **values})
    return {"source": snapshot.source, "why_empty": snapshot.why_empty, "devices": devices}


def _sums(registry: CollectorRegistry) -> dict[str, float]:
    """Each sample name's sum over its labels, of the series that the page shows; of requests those to /predict."""
    sums: dict[str, float] = {}
    wanted = {REQUESTS_IN_FLIGHT.name, REQUESTS.name, QUEUE_DEPTH}
    for histogram in (REQUEST_DURATION.name, BATCH_SIZE, INFERENCE_SECONDS):
        wanted |= {f"{histogram}_sum", f"{histogram}_count"}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name in wanted and sample.labels.get("route", PREDICT) == PREDICT:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums
