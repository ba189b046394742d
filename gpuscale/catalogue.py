"""Every series that gpuscale publishes: one table, which the code, the manifests and the docs are held to.

The names are a contract: dashboards and adapter rules rely on them. ``otel`` is the name in OpenTelemetry's
semantic conventions where there is one, with its attributes in parentheses.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

SeriesType = Literal["gauge", "counter", "histogram", "info"]

GPU_LABELS = ("minor_number", "uuid", "name")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WEBSOCKET")
"""Values of the label ``method``; whatever else a client sends is ``other``."""
OTHER_METHOD = "other"
UNMATCHED_ROUTE = "unmatched"
"""The route of every request that no route template matched."""
OVERFLOW_ROUTE = "other"
"""The route of requests beyond the limit of routes (a template that holds a client's input)."""
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of ``gpuscale_request_duration_seconds`` in seconds, without +Inf."""


class Series(NamedTuple):
    """One row of the table. ``name`` is the sample's name: a counter's ends in ``_total``."""

    name: str
    type: SeriesType
    unit: str
    labels: tuple[str, ...]
    help: str
    otel: str = ""


NUM_DEVICES = Series(
    "nvidia_gpu_num_devices",
    "gauge",
    "",
    (),
    "GPUs of this pod that can be read; 0 where there is no driver.",
)
UP = Series(
    "nvidia_gpu_up",
    "gauge",
    "",
    GPU_LABELS,
    "1 while this GPU's readings are fresh, else 0 and its values are absent.",
    "hw.status (hw.type=gpu)",
)
DUTY_CYCLE = Series(
    "nvidia_gpu_duty_cycle",
    "gauge",
    "percent",
    GPU_LABELS,
    "Share of the last window in which a kernel ran, from the integrated samples.",
    "hw.gpu.utilization (hw.gpu.task=general), as a fraction",
)
BUSY_SECONDS = Series(
    "nvidia_gpu_busy_seconds_total",
    "counter",
    "seconds",
    GPU_LABELS,
    "Seconds in which a kernel ran; its rate is the exact mean utilisation over any window.",
)
OBSERVED_SECONDS = Series(
    "nvidia_gpu_observed_seconds_total",
    "counter",
    "seconds",
    GPU_LABELS,
    "Seconds that nvidia_gpu_busy_seconds_total accounts for: less than time where the driver's samples have gaps.",
)
MEMORY_USED = Series(
    "nvidia_gpu_memory_used_bytes",
    "gauge",
    "bytes",
    GPU_LABELS,
    "Device memory in use.",
    "hw.gpu.memory.usage",
)
MEMORY_TOTAL = Series(
    "nvidia_gpu_memory_total_bytes",
    "gauge",
    "bytes",
    GPU_LABELS,
    "Device memory in all.",
    "hw.gpu.memory.limit",
)
TEMPERATURE = Series(
    "nvidia_gpu_temperature_celsius",
    "gauge",
    "celsius",
    GPU_LABELS,
    "Temperature of the GPU.",
    "hw.temperature (hw.parent=gpu)",
)
POWER = Series(
    "nvidia_gpu_power_usage_milliwatts",
    "gauge",
    "milliwatts",
    GPU_LABELS,
    "Power drawn by the GPU.",
    "hw.power (hw.type=gpu), in watts",
)
ENERGY = Series(
    "nvidia_gpu_energy_joules_total",
    "counter",
    "joules",
    GPU_LABELS,
    "Energy used by the GPU, where the device counts it.",
    "hw.energy (hw.type=gpu)",
)
FAN_SPEED = Series(
    "nvidia_gpu_fanspeed_percent",
    "gauge",
    "percent",
    GPU_LABELS,
    "Speed of the fan in percent of its maximum, where the device has a fan.",
    "hw.fan.speed_ratio, as a fraction",
)
PCIE_BYTES = Series(
    "nvidia_gpu_pcie_bytes_total",
    "counter",
    "bytes",
    (*GPU_LABELS, "direction"),
    "Bytes over PCIe by direction (transmit, receive), where the device counts them.",
    "hw.gpu.io (network.io.direction)",
)
NVLINK_BYTES = Series(
    "nvidia_gpu_nvlink_bytes_total",
    "counter",
    "bytes",
    (*GPU_LABELS, "direction"),
    "Bytes over NVLink by direction (transmit, receive), where the device counts them.",
    "hw.gpu.io (network.io.direction)",
)
OWN_MEMORY_USED = Series(
    "nvidia_gpu_own_memory_used_bytes",
    "gauge",
    "bytes",
    GPU_LABELS,
    "Device memory of this pod's own processes, where NVML tells.",
)
SAMPLE_AGE = Series(
    "gpuscale_gpu_sample_age_seconds",
    "gauge",
    "seconds",
    GPU_LABELS,
    "Age of the last good reading.",
)
READ_ERRORS = Series(
    "gpuscale_gpu_read_errors_total",
    "counter",
    "",
    ("reason",),
    "Failed readings by NVML's error name.",
    "hw.errors (hw.type=gpu, error.type)",
)
REQUESTS_IN_FLIGHT = Series(
    "gpuscale_requests_in_flight",
    "gauge",
    "",
    (),
    "Requests accepted and not yet ended, over all workers of the pod.",
    "http.server.active_requests",
)
IN_FLIGHT_SECONDS = Series(
    "gpuscale_in_flight_seconds_total",
    "counter",
    "seconds",
    (),
    "Time integral of the requests in flight; its rate is the exact mean number in flight.",
)
REQUESTS = Series(
    "gpuscale_requests_total",
    "counter",
    "",
    ("method", "route", "status"),
    "Requests that ended, by method, route template and status (499: the client went away).",
)
REQUEST_DURATION = Series(
    "gpuscale_request_duration_seconds",
    "histogram",
    "seconds",
    ("method", "route"),
    "Seconds from a request's acceptance to its last body byte.",
    "http.server.request.duration",
)
EVENT_LOOP_LAG = Series(
    "gpuscale_event_loop_lag_seconds",
    "gauge",
    "seconds",
    (),
    "Worst lag of the event loop in the last 15 seconds.",
)
INFO = Series(
    "gpuscale_info",
    "info",
    "",
    ("version", "mode", "gpu_source", "utilization", "gpus_from"),
    "How this endpoint works: version, mode (in-process, sidecar), GPU source (nvml, simulated, none), "
    "how utilisation is obtained (samples, rates, gpm), what decided which GPUs are shown.",
)

GPU_SERIES = (
    NUM_DEVICES, UP, DUTY_CYCLE, BUSY_SECONDS, OBSERVED_SECONDS, MEMORY_USED, MEMORY_TOTAL, TEMPERATURE, POWER, ENERGY,
    FAN_SPEED, PCIE_BYTES, NVLINK_BYTES, OWN_MEMORY_USED, SAMPLE_AGE, READ_ERRORS,
)  # fmt: skip
REQUEST_SERIES = (REQUESTS_IN_FLIGHT, IN_FLIGHT_SECONDS, REQUESTS, REQUEST_DURATION, EVENT_LOOP_LAG)
CATALOGUE = (*GPU_SERIES, *REQUEST_SERIES, INFO)
