"""prometheus-adapter's rules: how it finds our series and what it asks Prometheus for."""

from __future__ import annotations

from typing import Any

from gpuscale.hpa.api_metrics import API_METRICS, ApiMetric
from gpuscale.hpa.emit import Manifest

RELIST_INTERVAL = "15s"
"""How often the adapter looks for new series: a metric's name appears that late after its first sample."""
MAX_AGE = "2m"
"""Series of that long ago are still listed. Less than the relist or scrape interval makes names come and go."""


def adapter_config() -> Manifest:
    """The adapter's config.yaml."""
    return {
        "rules": [_custom(metric) for metric in API_METRICS],
        "externalRules": [_external(metric) for metric in API_METRICS],
    }


def _custom(metric: ApiMetric) -> Manifest:
    return {
        "seriesQuery": f'{metric.recorded}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": metric.name},
        # One series a pod is recorded, and the by-clause keeps it one: with two the adapter takes either.
        "metricsQuery": f"{_custom_aggregation(metric)}(<<.Series>>{{<<.LabelMatchers>>}}) by (<<.GroupBy>>)",
    }


def _custom_aggregation(metric: ApiMetric) -> str:
    return metric.over_pods


def _external(metric: ApiMetric) -> Manifest:
    return {
        "seriesQuery": f'{metric.recorded}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
        "name": {"as": metric.name},
        "metricsQuery": f"{metric.over_pods}(<<.Series>>{{<<.LabelMatchers>>}})",
    }


def helm_values(prometheus: str = "http://prometheus.monitoring") -> Manifest:
    """values.yaml of the Helm chart prometheus-community/prometheus-adapter: the same rules under its keys."""
    config = adapter_config()
    values: dict[str, Any] = {
        "prometheus": {"url": prometheus, "port": 9090},
        "replicas": 2,
        "metricsRelistInterval": RELIST_INTERVAL,
        "metricsMaxAge": MAX_AGE,
        "podDisruptionBudget": {"enabled": True, "minAvailable": 1, "maxUnavailable": None},
        "rules": {"default": False, "custom": config["rules"], "external": config["externalRules"]},
    }
    return values
