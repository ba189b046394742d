"""What the values on the metrics APIs are held to: the pod's own."""

from __future__ import annotations

PER_POD = {
    "memory_used_bytes_current": "nvidia_gpu_memory_used_bytes",
    "temperature_celsius_current": "nvidia_gpu_temperature_celsius",
    "power_usage_milliwatts_current": "nvidia_gpu_power_usage_milliwatts",
}
"""Metrics that stand still on an idle GPU, and the series of one GPU that they are."""
