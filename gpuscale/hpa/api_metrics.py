"""The metrics on Kubernetes' custom and external metrics APIs: one table.

The recording rules, the adapter's rules, KEDA's queries, the dashboard and the alerts are made from it. The recorded
series has one sample a pod, so that whoever asks for it needs no aggregation to be right and none to be cheap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from gpuscale.catalogue import BUSY_SECONDS, IN_FLIGHT_SECONDS, MEMORY_USED, POWER, TEMPERATURE, UP

WINDOW = "1m"
"""Of the rates. Shorter is noise (one sample of a duty cycle is 0 two times out of three), longer scales late."""
INTERVAL = "5s"
"""Of scrapes and of the rules' evaluation: what a metric's value is late by, and 12 samples in the window."""
INTERVAL_SECONDS = 5
POD_LABELS = ("namespace", "pod", "app")
"""What a recorded series keeps of its target's labels; ``app`` where the scrape adds the pod's label of that name."""
WATCHED = "gpuscale:watched"
"""1 at each evaluation of the rules: how long Prometheus has been looking."""
HELD = "15m"
"""How long a pod that cannot be scraped counts with the last number in flight that was measured."""

Aggregation = Literal["avg", "sum", "max"]


class ApiMetric(NamedTuple):
    """``name`` on both APIs; ``expression`` has one value a pod; ``over_pods`` makes the external value of them."""

    name: str
    series: str
    """The series of the catalogue that it is made from."""
    expression: str
    over_pods: Aggregation
    unit: str
    help: str

    @property
    def recorded(self) -> str:
        """The recorded series' name."""
        return f"gpuscale:{self.name}"


_BY_POD = f"by ({', '.join(POD_LABELS)})"
# Absent rather than too low in the first minute after Prometheus itself was away: rate() divides by the whole window
# even where samples cover only a part of it, and an HPA would take the difference for idleness.
_WATCHED_ALL_WINDOW = f"and on () (count_over_time({WATCHED}[{WINDOW}]) >= {60 // INTERVAL_SECONDS - 2})"
# A counter stands still while its GPU cannot be read: that minute is unknown and not idle.
_READ_ALL_WINDOW = (
    f"and on (namespace, pod, uuid) (min_over_time({UP.name}[{WINDOW}]) == 1)\n"
    f"  and on (namespace, pod, uuid) ({UP.name} == 1)"
)

DUTY_CYCLE_CURRENT = ApiMetric(
    "duty_cycle_current",
    BUSY_SECONDS.name,
    f"100 * avg {_BY_POD} (\n  rate({BUSY_SECONDS.name}[{WINDOW}])\n  {_READ_ALL_WINDOW}\n)\n{_WATCHED_ALL_WINDOW}",
    "avg",
    "percent",
    "Share of the last minute in which a kernel ran, mean over the pod's GPUs.",
)
MEMORY_USED_CURRENT = ApiMetric(
    "memory_used_bytes_current",
    MEMORY_USED.name,
    f"sum {_BY_POD} ({MEMORY_USED.name})",
    "sum",
    "bytes",
    "Device memory in use, sum over the pod's GPUs.",
)
TEMPERATURE_CURRENT = ApiMetric(
    "temperature_celsius_current",
    TEMPERATURE.name,
    f"max {_BY_POD} ({TEMPERATURE.name})",
    "max",
    "celsius",
    "Temperature of the pod's hottest GPU.",
)
POWER_CURRENT = ApiMetric(
    "power_usage_milliwatts_current",
    POWER.name,
    f"sum {_BY_POD} ({POWER.name})",
    "sum",
    "milliwatts",
    "Power drawn, sum over the pod's GPUs.",
)
IN_FLIGHT_RATE = "gpuscale:requests_in_flight:rate1m"
IN_FLIGHT_RATE_EXPRESSION = f"sum {_BY_POD} (rate({IN_FLIGHT_SECONDS.name}[{WINDOW}]))\n{_WATCHED_ALL_WINDOW}"
IN_FLIGHT_SCRAPED = "gpuscale:requests_in_flight:scraped"
# While scrapes fail, the rate falls within a minute as if the load did: only what was measured may be held.
IN_FLIGHT_SCRAPED_EXPRESSION = f"{IN_FLIGHT_RATE}\nand on (namespace, pod) {IN_FLIGHT_SECONDS.name}"
REQUESTS_IN_FLIGHT_CURRENT = ApiMetric(
    "requests_in_flight_current",
    IN_FLIGHT_SECONDS.name,
    # A pod that serves but cannot be scraped would be missing from the sum, which then reads as less load; one that
    # is gone takes its last minute with it bit by bit, as its successors' fills.
    f"{IN_FLIGHT_SCRAPED}\n"
    f"or (\n"
    f"  last_over_time({IN_FLIGHT_SCRAPED}[{HELD}])\n"
    f"  and on (namespace, pod) (min by (namespace, pod) (up) == 0)\n"
    f"  {_WATCHED_ALL_WINDOW}\n"
    f")\n"
    f"or {IN_FLIGHT_RATE}",
    "sum",
    "requests",
    "Mean number of requests in flight over the last minute.",
)

API_METRICS = (
    DUTY_CYCLE_CURRENT,
    MEMORY_USED_CURRENT,
    TEMPERATURE_CURRENT,
    POWER_CURRENT,
    REQUESTS_IN_FLIGHT_CURRENT,
)

# The letters of the hashes that a Deployment's controllers put behind its name (k8s.io/apimachinery/pkg/util/rand).
_HASH = "[b-df-hj-np-tv-xz24-9]"
DEPLOYMENT_OF_POD = f"(.+)-{_HASH}{{1,10}}-{_HASH}{{5}}"
LONGEST_DEPLOYMENT = 46
"""Letters of a name; with more, Kubernetes cuts the names of its pods and the expression above does not fit."""


def with_deployment(expression: str) -> str:
    """The expression with the label ``deployment``, by which an HPA selects, whatever labels the scrape adds."""
    inner = "\n".join(f"  {line}" for line in expression.split("\n"))
    return f'label_replace(\n{inner},\n  "deployment", "$1", "pod", "{DEPLOYMENT_OF_POD}"\n)'
