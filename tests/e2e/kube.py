"""kubectl as a function, waiting with a bound, and a record of what an HPA does."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_COMPILED = Path.home() / ".cache/gpuscale-cluster/bin/kubectl"
KUBECTL = shutil.which("kubectl") or str(_COMPILED)
"""On PATH, else the one that the cluster beside this repository has compiled."""


def kubectl(*arguments: str, given: str | None = None, check: bool = True, timeout: float = 120) -> str:
    """Its standard output; RuntimeError with what it said when it fails."""
    done = subprocess.run([KUBECTL, *arguments], input=given, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def get(*arguments: str) -> Any:
    """``kubectl get ... -o json``."""
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def wait_for(what: str, condition: Callable[[], Any], seconds: float, every: float = 1.0) -> Any:
    """Poll until ``condition`` gives something true, and return it; a command that fails counts as not yet."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            last = condition()
        except (RuntimeError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {what}; last: {last!r}")


def pods(namespace: str, selector: str, ready: bool = True) -> list[dict[str, Any]]:
    """The pods that are not ending; with ``ready`` only those that are ready."""
    found = [
        pod
        for pod in get("pods", "-n", namespace, "-l", selector)["items"]
        if not pod["metadata"].get("deletionTimestamp")
    ]
    if not ready:
        return found
    return [pod for pod in found if _condition(pod, "Ready")]


def _condition(thing: dict[str, Any], name: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(one["type"] == name and one["status"] == "True" for one in conditions)


def custom(namespace: str, metric: str) -> dict[str, float]:
    """A metric of the custom metrics API by pod; without pods that have none."""
    answer = json.loads(
        kubectl("get", "--raw", f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/*/{metric}")
    )
    return {item["describedObject"]["name"]: quantity(item["value"]) for item in answer["items"]}


def external(namespace: str, metric: str, deployment: str | None = None) -> float | None:
    """A metric of the external metrics API, None where there is no value."""
    selector = f"?labelSelector=deployment%3D{deployment}" if deployment else ""
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}{selector}"
    items = json.loads(kubectl("get", "--raw", path))["items"]
    return quantity(items[0]["value"]) if items else None


def prometheus(query: str, where: str = "monitoring/services/prometheus:9090") -> list[dict[str, Any]]:
    """What a Prometheus answers to an instant query: ``[{"metric": labels, "value": [time, text]}]``."""
    namespace, _, rest = where.partition("/")
    path = f"/api/v1/namespaces/{namespace}/{rest}/proxy/api/v1/query?query={urllib.parse.quote(query)}"
    result: list[dict[str, Any]] = json.loads(kubectl("get", "--raw", path))["data"]["result"]
    return result


def quantity(text: str) -> float:
    """The number of a Kubernetes quantity."""
    for suffix, factor in (("m", 1e-3), ("Ki", 1024.0), ("Mi", 2.0**20), ("Gi", 2.0**30), ("k", 1e3), ("M", 1e6)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


class Watch:
    """Writes the lines of ``kubectl get hpa`` to a file, and what a plot wants of them to a JSON file beside it."""

    def __init__(self, namespace: str, hpa: str, deployment: str, folder: Path, period: float = 3.0) -> None:
        self._where = ("-n", namespace, hpa)
        self._namespace, self._deployment, self._period = namespace, deployment, period
        self._folder = folder
        self.rows: list[dict[str, Any]] = []
        self.marks: list[dict[str, Any]] = []
        self._last = ""
        self._begun = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "hpa.txt").write_text("")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=30)
        self._look()  # what a test has just seen is part of the record
        record = {"deployment": self._deployment, "rows": self.rows, "marks": self.marks}
        (self._folder / "record.json").write_text(json.dumps(record, indent=1))
        events = kubectl("get", "events", "-n", self._namespace, "--sort-by=.lastTimestamp", check=False)
        (self._folder / "events.txt").write_text(events)
        (self._folder / "describe.txt").write_text(kubectl("describe", "hpa", *self._where, check=False))

    def mark(self, text: str) -> None:
        """Note that something begins now."""
        self.marks.append({"t": round(time.monotonic() - self._begun, 1), "text": text})

    def replicas(self) -> list[int]:
        """The numbers of pods that the HPA wanted, in order, without repetition."""
        found: list[int] = []
        for row in self.rows:
            if not found or found[-1] != row["desired"]:
                found.append(row["desired"])
        return found

    def _run(self) -> None:
        while not self._end.wait(self._period):
            self._look()

    def _look(self) -> None:
        line = kubectl("get", "hpa", *self._where, "--no-headers", check=False).strip()
        # The age changes in each line: told apart by what stands before it.
        if line and line.rsplit(None, 1)[0] != self._last:
            self._last = line.rsplit(None, 1)[0]
            with open(self._folder / "hpa.txt", "a") as file:
                file.write(f"{time.monotonic() - self._begun:7.1f}  {line}\n")
        with suppress(RuntimeError, KeyError, ValueError):
            self.rows.append(self._row())

    def _row(self) -> dict[str, Any]:
        hpa = get("hpa", *self._where)
        status = hpa["status"]
        values = {}
        for metric in status.get("currentMetrics") or []:
            for kind in ("pods", "external"):
                if metric.get(kind):
                    current = metric[kind]["current"]
                    value = quantity(current.get("averageValue", current.get("value")))
                    if value >= 0:  # else a mean over no pod: the smallest number that a quantity can be
                        values[metric[kind]["metric"]["name"]] = value
        deployment = get("deployment", "-n", self._namespace, self._deployment)
        load = None
        with suppress(RuntimeError):
            load = external(self._namespace, "requests_in_flight_current", self._deployment)
        return {
            "t": round(time.monotonic() - self._begun, 1),
            "desired": deployment["spec"].get("replicas", 1),
            "ready": deployment["status"].get("readyReplicas", 0),
            "load": load,  # requests in flight over all pods
            "metrics": values,
            "conditions": {one["type"]: f"{one['status']} {one['reason']}" for one in status.get("conditions", [])},
        }
