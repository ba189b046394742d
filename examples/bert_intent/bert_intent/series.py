"""The service's own series, beside gpuscale's on the metrics port."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

BATCH_SIZE = "bert_intent_batch_size"
QUEUE_DEPTH = "bert_intent_queue_depth"
INFERENCE_SECONDS = "bert_intent_inference_seconds"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable: the folder in which the workers of one service share their numbers."""


class ServiceSeries:
    """Batch size, queue depth and inference seconds, of all workers when they share a folder."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Gauge, Histogram

        shared = os.environ.get(MULTIPROCESS)
        if shared:
            from prometheus_client.multiprocess import MultiProcessCollector

            _forget_the_dead(shared)
            MultiProcessCollector(registry, path=shared)  # type: ignore[no-untyped-call]
        own: Any = None if shared else registry
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self._batch_size = Histogram(BATCH_SIZE, "Texts in one forward batch.", buckets=sizes, registry=own)
        self._depth = Gauge(QUEUE_DEPTH, "Texts that wait for the model.", registry=own, multiprocess_mode="livesum")
        seconds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
        self._seconds = Histogram(
            INFERENCE_SECONDS, "Seconds of one batch in the model.", buckets=seconds, registry=own
        )

    def queued(self, change: int) -> None:
        """``change`` texts more (or, negative, fewer) wait."""
        self._depth.inc(change)

    def ran(self, size: int, seconds: float) -> None:
        """A batch of ``size`` texts took ``seconds`` in the model."""
        self._batch_size.observe(size)
        self._seconds.observe(seconds)


def _forget_the_dead(folder: str) -> None:
    """A worker that was killed leaves its queue's depth behind; whoever starts in its place removes it."""
    from prometheus_client.multiprocess import mark_process_dead

    for path in glob.glob(os.path.join(glob.escape(folder), "gauge_live*_*.db")):
        pid = path.rpartition("_")[2].removesuffix(".db")
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            mark_process_dead(int(pid), folder)  # type: ignore[no-untyped-call]
