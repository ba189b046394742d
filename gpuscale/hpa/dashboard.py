"""Grafana's dashboard over the series of the contract."""

from __future__ import annotations

from typing import Any

from gpuscale.catalogue import (
    DUTY_CYCLE,
    EVENT_LOOP_LAG,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    READ_ERRORS,
    REQUEST_DURATION,
    REQUESTS,
    REQUESTS_IN_FLIGHT,
    TEMPERATURE,
    UP,
)
from gpuscale.hpa.api_metrics import API_METRICS, DUTY_CYCLE_CURRENT, REQUESTS_IN_FLIGHT_CURRENT

_SELECT = 'namespace="$namespace",pod=~"$deployment-.*"'


def _rate(series: str) -> str:
    return f"rate({series}{{{_SELECT}}}[1m])"


_PANELS: tuple[tuple[str, str, str, str], ...] = (
    ("Requests in flight, what the HPA sees", "short",
     f"sum({REQUESTS_IN_FLIGHT_CURRENT.recorded}{{{_SELECT}}})", "total"),
    ("Pods", "short", f"count({DUTY_CYCLE_CURRENT.recorded}{{{_SELECT}}})", "pods with a GPU that can be read"),
    ("Duty cycle, what the HPA sees", "percent", f"{DUTY_CYCLE_CURRENT.recorded}{{{_SELECT}}}", "{{pod}}"),
    ("Duty cycle, last 10 s", "percent", f"{DUTY_CYCLE.name}{{{_SELECT}}}", "{{pod}} {{minor_number}}"),
    ("Requests in flight, now", "short", f"{REQUESTS_IN_FLIGHT.name}{{{_SELECT}}}", "{{pod}}"),
    ("Requests a second", "reqps", f"sum by (route, status) ({_rate(REQUESTS.name)})", "{{route}} {{status}}"),
    ("Request duration, 99th percentile", "s",
     f"histogram_quantile(0.99, sum by (le, route) ({_rate(REQUEST_DURATION.name + '_bucket')}))", "{{route}}"),
    ("Memory used", "percentunit", f"{MEMORY_USED.name}{{{_SELECT}}} / {MEMORY_TOTAL.name}{{{_SELECT}}}",
     "{{pod}} {{minor_number}}"),
    ("Temperature", "celsius", f"{TEMPERATURE.name}{{{_SELECT}}}", "{{pod}} {{minor_number}}"),
    ("Power", "watt", f"{POWER.name}{{{_SELECT}}} / 1000", "{{pod}} {{minor_number}}"),
    ("GPUs that can be read", "short", f"{UP.name}{{{_SELECT}}}", "{{pod}} {{minor_number}}"),
    ("Failed readings", "short", f"sum by (reason) ({_rate(READ_ERRORS.name)})", "{{reason}}"),
    ("Event loop lag", "s", f"{EVENT_LOOP_LAG.name}{{{_SELECT}}}", "{{pod}}"),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard's JSON model; the data source, namespace and Deployment are its variables."""
    return {
        "uid": "gpuscale",
        "title": "GPU inference autoscaling",
        "tags": ["gpuscale", "gpu", "hpa"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [_panel(number, *panel) for number, panel in enumerate(_PANELS)],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${source}"}
    recorded = API_METRICS[-1].recorded

    def values(label: str, selector: str) -> dict[str, Any]:
        return {
            "name": label,
            "type": "query",
            "datasource": source,
            "refresh": 2,
            "query": {"query": f"label_values({recorded}{selector}, {label})", "refId": label},
        }

    return [
        {"name": "source", "type": "datasource", "query": "prometheus"},
        values("namespace", ""),
        values("deployment", '{namespace="$namespace"}'),
    ]


def _panel(number: int, title: str, unit: str, expression: str, legend: str) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "expr": expression, "legendFormat": legend}],
    }
