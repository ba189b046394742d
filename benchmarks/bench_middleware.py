"""What a middleware adds to a request: ours and others' around the same app, in turn, in one process.

    python -m benchmarks.bench_middleware [--json] [--rounds 15] [--requests 2000]

The app answers from memory, so its own cost is the framework's. The figures are medians over the rounds, the added cost
is against the bare app of the same round. Short rounds (--requests 100) show what it costs with cold caches. Time is
the thread's CPU time, all that a request takes here; other work on the machine lengthens it through the caches alone.

Before them: what ``import gpuscale`` adds to the start of the interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import gc
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from gpuscale.publish.publication import Publication
from gpuscale.settings import Settings

_loop = asyncio.new_event_loop()
Runner = Callable[[int], float]
"""Calls an app that many times; returns the seconds that it took."""


def publication(shared: bool) -> Publication:
    """Numbers in private memory, or in a file that other workers read, as with ``--workers``."""
    made = Publication(Settings.create({}, port=0, gpu="none", address="127.0.0.1"), CollectorRegistry())
    if shared:
        folder = tempfile.mkdtemp(dir="/dev/shm", prefix="bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        made.settings = Settings.create({}, port=0, gpu="none", address="127.0.0.1", run_dir=folder)
        made.start()
    else:
        made.running = True
        made.accounting.sharing = False  # as start() decides for a process that stands alone
    return made


def starlette_app() -> Any:
    """One route that answers two bytes."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def predict(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/predict/{item}", predict)])


def fastapi_app() -> Any:
    """The same on FastAPI, for instrumentations that know only it."""
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI()

    @app.get("/predict/{item}")
    async def predict(item: str) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return app


def ours(app: Any, shared: bool = False) -> Any:
    from gpuscale.asgi import MetricsMiddleware

    app.add_middleware(MetricsMiddleware, publication=publication(shared))
    return app


def fastapi_instrumentator(app: Any) -> Any:
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app


def starlette_exporter(app: Any) -> Any:
    from starlette_exporter import PrometheusMiddleware

    app.add_middleware(PrometheusMiddleware, group_paths=True)
    return app


def otel_asgi(app: Any) -> Any:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider

    return OpenTelemetryMiddleware(app, meter_provider=MeterProvider([PrometheusMetricReader()]))


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class Cycle:
    """A server's side of a request, as uvicorn has it."""

    disconnected = False

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        pass


def asgi_runner(app: Any) -> Runner:
    headers = [(b"host", b"localhost"), (b"user-agent", b"bench"), (b"accept", b"*/*")]

    async def calls(count: int) -> float:
        start = time.thread_time()
        for _ in range(count):
            cycle = Cycle()
            scope = {
                "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
                "method": "GET", "scheme": "http", "path": "/predict/music", "raw_path": b"/predict/music",
                "query_string": b"", "root_path": "", "headers": headers, "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 80), "state": {},
            }  # fmt: skip
            await app(scope, cycle.receive, cycle.send)
        return time.thread_time() - start

    return lambda count: _loop.run_until_complete(calls(count))


def flask_app() -> Any:
    from flask import Flask

    app = Flask("bench")

    @app.get("/predict/<item>")
    def predict(item: str) -> str:
        return "ok"

    return app


def ours_wsgi(app: Any, shared: bool = False) -> Any:
    from gpuscale.wsgi import MetricsMiddleware

    app.wsgi_app = MetricsMiddleware(app.wsgi_app, publication=publication(shared))
    return app


def flask_exporter(app: Any) -> Any:
    from prometheus_flask_exporter import PrometheusMetrics

    PrometheusMetrics(app, registry=CollectorRegistry(), group_by="url_rule")
    return app


def otel_wsgi(app: Any) -> Any:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider

    app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app, meter_provider=MeterProvider([PrometheusMetricReader()]))
    return app


def wsgi_runner(app: Any) -> Runner:
    def run(count: int) -> float:
        start = time.thread_time()
        for _ in range(count):
            environ = {
                "REQUEST_METHOD": "GET", "PATH_INFO": "/predict/music", "SCRIPT_NAME": "", "QUERY_STRING": "",
                "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
                "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": None, "wsgi.errors": sys.stderr,
                "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False, "HTTP_HOST": "localhost",
            }  # fmt: skip
            body = app(environ, lambda status, headers, exc_info=None: None)
            for _chunk in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return time.thread_time() - start

    return run


def groups() -> dict[str, dict[str, Runner]]:
    """Variants by baseline; the first of each group is the bare app."""
    return {
        "Starlette": {
            "bare": asgi_runner(starlette_app()),
            "gpuscale": asgi_runner(ours(starlette_app())),
            "gpuscale, workers sharing": asgi_runner(ours(starlette_app(), shared=True)),
            "starlette_exporter": asgi_runner(starlette_exporter(starlette_app())),
            "OpenTelemetry": asgi_runner(otel_asgi(starlette_app())),
        },
        "FastAPI": {
            "bare": asgi_runner(fastapi_app()),
            "gpuscale": asgi_runner(ours(fastapi_app())),
            "prometheus-fastapi-instrumentator": asgi_runner(fastapi_instrumentator(fastapi_app())),
        },
        "Flask": {
            "bare": wsgi_runner(flask_app()),
            "gpuscale": wsgi_runner(ours_wsgi(flask_app())),
            "gpuscale, workers sharing": wsgi_runner(ours_wsgi(flask_app(), shared=True)),
            "prometheus_flask_exporter": wsgi_runner(flask_exporter(flask_app())),
            "OpenTelemetry": wsgi_runner(otel_wsgi(flask_app())),
        },
    }


def measure(variants: dict[str, Runner], rounds: int, requests: int) -> dict[str, dict[str, float]]:
    """Microseconds a request by variant, what is added to the bare app, and the ratio to it."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run(requests)
    shuffled = random.Random(0)
    gc.collect()
    for _ in range(rounds):
        # In another order each time: who comes after whom costs a microsecond by itself.
        for name, run in shuffled.sample(list(variants.items()), len(variants)):
            times[name].append(run(requests) / requests * 1e6)
    bare = times["bare"]
    return {
        name: {
            "us": statistics.median(taken),
            "added_us": statistics.median(one - base for one, base in zip(taken, bare, strict=True)),
            "ratio": statistics.median(one / base for one, base in zip(taken, bare, strict=True)),
        }
        for name, taken in times.items()
    }


def import_milliseconds(module: str, starts: int = 15) -> float:
    """What importing ``module`` adds to the interpreter's start, at the least of so many."""
    least = dict.fromkeys(("pass", f"import {module}"), float("inf"))
    for _ in range(starts):
        for code in least:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            least[code] = min(least[code], time.perf_counter() - start)
    bare, imported = least.values()
    return (imported - bare) * 1000


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    imports = {module: import_milliseconds(module) for module in ("gpuscale", "prometheus_client")}
    results = {app: measure(variants, options.rounds, options.requests) for app, variants in groups().items()}
    if options.json:
        print(json.dumps({"import_ms": imports, **results}, indent=2))
        return results
    for module, milliseconds in imports.items():
        print(f"import {module}: {milliseconds:.1f} ms over the interpreter")
    for app, variants in results.items():
        print(f"{app:45}{'us/request':>12}{'added us':>12}{'ratio':>8}")
        for name, figures in variants.items():
            print(f"  {name:43}{figures['us']:12.1f}{figures['added_us']:12.1f}{figures['ratio']:8.2f}")
    return results


if __name__ == "__main__":
    main()
