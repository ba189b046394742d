"""``gpuscale.instrument``: in place, once, one endpoint that is there from the start and goes with ``close()``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

import gpuscale
from gpuscale.errors import ConfigurationError
from tests.middleware.mounted import Handles, ask, counted, mount, scrape
from tests.middleware.servers import free_port


@pytest.mark.parametrize("kind", ["fastapi", "litestar", "quart", "asgi"])
def test_metrics_are_there_before_the_first_request(opened: Handles, kind: str) -> None:
    """From the server's start-up on: a pod without traffic is scraped, too."""
    app: Any
    if kind == "fastapi":
        from fastapi import FastAPI

        app = FastAPI()
    elif kind == "litestar":
        from litestar import Litestar

        app = Litestar([])
    elif kind == "quart":
        from quart import Quart

        app = Quart(__name__)
    else:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("only http")  # as Django's ASGI handler

    handle = mount(app, opened)

    async def start_up() -> dict[str, Any]:
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            kind = next(messages)
            if kind == "lifespan.shutdown":
                seen.append(handle._publication.totals().loop_lag is not None)
            return {"type": kind}

        async def send(message: Any) -> None: ...

        with contextlib.suppress(ValueError):
            await handle.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        return scrape(handle._publication.url or "")

    seen: list[bool] = []
    assert "gpuscale_requests_in_flight" in asyncio.run(start_up())
    assert seen == ([] if kind == "asgi" else [True])
    assert handle._publication.totals().loop_lag is None


def test_the_endpoint_publishes_the_contracts_series_and_the_apps_own(opened: Handles) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    registry = CollectorRegistry()
    mine = Counter("mine", "The app's own.", registry=registry)
    mine.inc()

    @app.get("/x")
    def x() -> str:
        return "x"

    handle = mount(app, opened, registry=registry)
    ask(app, "/x")
    page = scrape(handle.metrics_url)
    assert page["mine"].samples[0].value == 1
    assert page["gpuscale_requests"].samples[0].value == 1
    assert page["gpuscale_requests_in_flight"].samples[0].value == 0
    assert page["nvidia_gpu_num_devices"].samples[0].value == 0
    info = page["gpuscale_info"].samples[0].labels
    assert info["mode"] == "in-process"
    assert info["version"] == gpuscale.__version__
    names = [sample.name for family in registry.collect() for sample in family.samples]
    assert "gpuscale_requests_in_flight" in names
    handle.close()
    with pytest.raises(OSError):
        scrape(handle.metrics_url)
    assert "gpuscale_requests_in_flight" not in [family.name for family in registry.collect()]


def test_a_second_call_returns_the_same_handle(opened: Handles) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    handle = mount(app, opened)
    assert gpuscale.instrument(app, port=0) is handle
    assert gpuscale.instrument(handle.app, port=0) is handle
    with pytest.raises(ConfigurationError, match="unknown option 'prot'"):
        gpuscale.instrument(app, prot=9445)


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_instrumenting_again_after_close_publishes_again(opened: Handles, kind: str) -> None:
    from fastapi import FastAPI
    from flask import Flask
    from starlette.testclient import TestClient

    app: Any = FastAPI() if kind == "fastapi" else Flask(__name__)
    handle = mount(app, opened)
    for number in (1, 2):
        if kind == "fastapi":
            TestClient(app).get("/nothing")
        else:
            app.test_client().get("/nothing", buffered=True)
        page = scrape(handle.metrics_url)
        assert page["gpuscale_requests"].samples[0].value == number
        url = handle.metrics_url
        handle.close()
        with pytest.raises(OSError):
            scrape(url)
        assert gpuscale.instrument(app, port=0) is handle


def test_metrics_on_the_app_itself(opened: Handles) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    app = FastAPI()
    handle = mount(app, opened, on_app=True, excluded_paths=["/probe"])
    assert handle.metrics_url == "/metrics"
    with TestClient(app) as client:
        for path in ("/metrics", "/metrics/"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "gpuscale_requests_in_flight 0.0" in answer.text
        openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.text.endswith("# EOF\n")
        head = client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 1000
    assert counted(handle) == {}


def test_metrics_on_a_wsgi_app_itself(opened: Handles) -> None:
    from flask import Flask

    app = Flask(__name__)
    handle = mount(app, opened, on_app=True, excluded_paths=["/probe"])
    client = app.test_client()
    for path in ("/metrics", "/metrics/"):
        assert "gpuscale_requests_in_flight 0.0" in client.get(path).text
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")
    head = client.head("/metrics")
    assert (head.status_code, head.data) == (200, b"")
    assert counted(handle) == {}


def test_bare_callables_and_what_is_none(opened: Handles) -> None:
    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    async def asgi(scope: Any, receive: Any, send: Any) -> None: ...

    from gpuscale.asgi import MetricsMiddleware as Asgi
    from gpuscale.wsgi import MetricsMiddleware as Wsgi

    assert isinstance(mount(wsgi, opened).app, Wsgi)
    assert isinstance(mount(asgi, opened).app, Asgi)
    with pytest.raises(TypeError, match="app must be an ASGI or WSGI callable, not int"):
        gpuscale.instrument(3)


def test_two_apps_with_different_options_on_one_port(opened: Handles) -> None:
    from fastapi import FastAPI

    port = free_port()
    first = mount(FastAPI(), opened, port=port)
    second = mount(FastAPI(), opened, port=port)
    assert first._publication is second._publication
    with pytest.raises(ConfigurationError, match=r"buckets=\(1\.0, 2\.0\)"):
        gpuscale.instrument(FastAPI(), port=port, gpu="none", address="127.0.0.1", buckets=(1, 2))
