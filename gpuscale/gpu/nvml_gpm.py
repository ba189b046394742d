"""Activity of a MIG instance by GPU performance monitoring (Hopper and later).

An instance has no sample ring and no rate. GPM gives the mean between two samples that we take ourselves. The calls
are serialised by the sampler's one thread, as NVML asks.
"""

from __future__ import annotations

import time
from typing import Any

METRICS = (1, 2)
"""NVML_GPM_METRIC_GRAPHICS_UTIL (share of time in which any app was active, which is what ``busy`` means elsewhere),
else NVML_GPM_METRIC_SM_UTIL."""
SHORTEST = 0.9
"""Seconds between two samples; over less than a second GPM's figures are not dependable."""


class GpmMeter:
    """Mean activity of one instance between calls of ``read``."""

    def __init__(self, nvml: Any, parent: Any, gpu_instance: int) -> None:
        self._nvml = nvml
        self._parent = parent
        self._gpu_instance = gpu_instance
        self._before: Any = None
        self._before_at = 0.0
        self._spare: Any = None
        self._query: Any = None
        self._metric = 0

    def read(self) -> tuple[float, float] | None:
        """(percent, seconds) since the last call; None at the first and when too little time went by.

        Raises NVMLError, NOT_SUPPORTED before Hopper.
        """
        nvml = self._nvml
        at = time.monotonic()
        if self._before is not None and at - self._before_at < SHORTEST:
            return None
        if self._query is None:
            if not nvml.nvmlGpmQueryDeviceSupport(self._parent).isSupportedDevice:
                raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
            self._query = nvml.c_nvmlGpmMetricsGet_t()
        sample = self._spare if self._spare is not None else nvml.nvmlGpmSampleAlloc()
        self._spare = sample
        nvml.nvmlGpmMigSampleGet(self._parent, self._gpu_instance, sample)
        at = time.monotonic()
        before, before_at = self._before, self._before_at
        self._spare, self._before, self._before_at = before, sample, at
        if before is None:
            return None
        percent = self._mean(before, sample)
        return None if percent is None else (percent, at - before_at)

    def _mean(self, before: Any, after: Any) -> float | None:
        nvml, query = self._nvml, self._query
        query.version = nvml.NVML_GPM_METRICS_GET_VERSION
        query.numMetrics = 1
        query.sample1, query.sample2 = before, after
        while True:
            query.metrics[0].metricId = METRICS[self._metric]
            nvml.nvmlGpmMetricsGet(query)
            code = query.metrics[0].nvmlReturn
            if code == nvml.NVML_ERROR_NOT_SUPPORTED and self._metric + 1 < len(METRICS):
                self._metric += 1
                continue
            if code == nvml.NVML_ERROR_NO_DATA:
                return None
            if code != 0:
                raise nvml.NVMLError(code)
            return float(query.metrics[0].value)

    def close(self) -> None:
        """Frees both samples; an error in that changes nothing for us."""
        for sample in (self._before, self._spare):
            if sample is not None:
                try:
                    self._nvml.nvmlGpmSampleFree(sample)
                except self._nvml.NVMLError:
                    pass
        self._before = self._spare = None
