"""``gpuscale.instrument`` on each framework: in place, route templates with their prefixes, one endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

import gpuscale
from gpuscale.errors import ConfigurationError
from gpuscale.requests.totals import read_totals
from tests.middleware.servers import free_port


@pytest.fixture
def opened() -> Iterator[list[gpuscale.Metrics[Any]]]:
    """Handles that are closed at the end."""
    handles: list[gpuscale.Metrics[Any]] = []
    yield handles
    for handle in handles:
        handle.close()


def mount(app: Any, opened: list[gpuscale.Metrics[Any]], **options: Any) -> gpuscale.Metrics[Any]:
    options = {"port": 0, "gpu": "none", "address": "127.0.0.1", "registry": CollectorRegistry(), **options}
    handle = gpuscale.instrument(app, **options)
    opened.append(handle)
    return handle


def counted(handle: gpuscale.Metrics[Any]) -> dict[tuple[str, str, str], float]:
    requests = read_totals(handle._publication.accounting.slab).requests
    return {labels: number for labels, number in requests.items() if number}


def ask(app: Any, *paths: str) -> None:
    """GET each path in turn, over ASGI in this process."""

    async def all_of_them() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in paths:
                await client.get(path)

    asyncio.run(all_of_them())


def scrape(url: str) -> dict[str, Any]:
    """Families of a metrics page by name."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_fastapi_routes_with_the_prefixes_of_routers_and_mounts(opened: list[gpuscale.Metrics[Any]]) -> None:
    from fastapi import APIRouter, FastAPI

    inner = APIRouter(prefix="/inner")

    @inner.get("/{number}")
    def number(number: int) -> int:
        return number

    outer = APIRouter()
    outer.include_router(inner, prefix="/outer")
    app, mounted = FastAPI(), FastAPI()
    app.include_router(outer, prefix="/api")
    app.include_router(outer, prefix="/v2")
    app.mount("/sub/{tenant}", mounted)

    @app.get("/items/{path:path}")
    def items(path: str) -> str:
        return path

    @mounted.get("/leaf/{name}")
    def leaf(name: str) -> str:
        return name

    handle = mount(app, opened)
    assert handle.app is app
    ask(app, "/api/outer/inner/1", "/api/outer/inner/2", "/v2/outer/inner/3", "/items/a/b", "/sub/t1/leaf/x",
        "/sub/t2/leaf/y", "/nothing", "/sub/t1/nothing", "/api/outer/inner/not-a-number")  # fmt: skip
    assert counted(handle) == {
        ("GET", "/api/outer/inner/{number}", "200"): 2,
        ("GET", "/api/outer/inner/{number}", "422"): 1,
        ("GET", "/v2/outer/inner/{number}", "200"): 1,
        ("GET", "/items/{path}", "200"): 1,
        ("GET", "/sub/{tenant}/leaf/{name}", "200"): 2,
        ("GET", "unmatched", "404"): 2,
    }


def test_a_middleware_by_hand_around_the_whole_app_knows_its_routes(opened: list[gpuscale.Metrics[Any]]) -> None:
    """There the app is not in the scope yet, and other middlewares may lie between."""
    from fastapi import FastAPI
    from starlette.middleware.gzip import GZipMiddleware

    app, mounted = FastAPI(), FastAPI()
    app.mount("/sub", mounted)

    @app.get("/items/{number}")
    def items(number: int) -> int:
        return number

    @mounted.get("/leaf/{name}")
    def leaf(name: str) -> str:
        return name

    wrapped = mount(GZipMiddleware(app), opened)
    ask(wrapped.app, "/items/1", "/sub/leaf/x", "/nothing")
    assert counted(wrapped) == {
        ("GET", "/items/{number}", "200"): 1, ("GET", "/sub/leaf/{name}", "200"): 1, ("GET", "unmatched", "404"): 1,
    }  # fmt: skip


def test_a_root_path_in_front_of_probes_and_ambiguous_routes(opened: list[gpuscale.Metrics[Any]]) -> None:
    """``uvicorn --root-path /api`` puts it in front of every path, though nobody asks for it there."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    shared = [Route("/leaf/{id:int}", hello)]
    app = Starlette(
        routes=[Route("/healthz", hello), Mount("/one", routes=shared), Mount("/two", routes=shared)],
    )
    handle = mount(app, opened)

    async def behind_a_proxy(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/api", "path": "/api" + scope["path"]}, receive, send)

    ask(behind_a_proxy, "/healthz", "/two/leaf/2")
    assert counted(handle) == {("GET", "/two/leaf/{id}", "200"): 1}


def test_starlette_one_endpoint_under_two_routes(opened: list[gpuscale.Metrics[Any]]) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    shared = [Route("/leaf/{id:int}", hello)]
    app = Starlette(
        routes=[Route("/a", hello), Route("/b", hello), Mount("/one", routes=shared), Mount("/two", routes=shared)]
    )
    handle = mount(app, opened)
    ask(app, "/a", "/b", "/one/leaf/1", "/two/leaf/2")
    assert counted(handle) == {
        ("GET", "/a", "200"): 1, ("GET", "/b", "200"): 1,
        ("GET", "/one/leaf/{id}", "200"): 1, ("GET", "/two/leaf/{id}", "200"): 1,
    }  # fmt: skip


def test_litestar(opened: list[gpuscale.Metrics[Any]]) -> None:
    from litestar import Litestar, Router, get

    @get("/{number:int}")
    async def number(number: int) -> int:
        return number

    app = Litestar([Router("/api", route_handlers=[number])])
    handle = mount(app, opened)
    ask(app, "/api/1", "/api/2", "/nothing")
    routes = counted(handle)
    assert sum(count for (_, _, status), count in routes.items() if status == "200") == 2
    assert {route for _, route, status in routes if status == "200"} == {"/api/{number}"}
    assert ("GET", "unmatched", "404") in routes


@pytest.mark.parametrize("kind", ["fastapi", "litestar", "quart", "asgi"])
def test_metrics_are_there_before_the_first_request(opened: list[gpuscale.Metrics[Any]], kind: str) -> None:
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


def test_quart(opened: list[gpuscale.Metrics[Any]]) -> None:
    from quart import Quart

    app = Quart(__name__)

    @app.get("/items/<int:number>")
    async def items(number: int) -> str:
        return str(number)

    handle = mount(app, opened)
    ask(app, "/items/1", "/items/2", "/nothing")
    assert counted(handle) == {("GET", "/items/<int:number>", "200"): 2, ("GET", "unmatched", "404"): 1}


def test_flask_with_a_blueprint(opened: list[gpuscale.Metrics[Any]]) -> None:
    from flask import Blueprint, Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.test import Client

    app = Flask(__name__)
    blueprint = Blueprint("api", __name__, url_prefix="/api")

    @blueprint.get("/items/<int:number>")
    def items(number: int) -> str:
        return str(number)

    app.register_blueprint(blueprint)
    handle = mount(app, opened)
    assert handle.app is app
    client = app.test_client()
    client.get("/api/items/1", buffered=True)
    client.get("/nothing", buffered=True)
    Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/mounted": app.wsgi_app})).get(
        "/mounted/api/items/2", buffered=True
    )
    assert counted(handle) == {
        ("GET", "/api/items/<int:number>", "200"): 1,
        ("GET", "/mounted/api/items/<int:number>", "200"): 1,
        ("GET", "unmatched", "404"): 1,
    }


DJANGO = """
import sys, asyncio, django, httpx, gpuscale
from django.conf import settings
from django.http import HttpResponse
from django.urls import include, path
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=[])
items = [path("items/<int:number>", lambda request, number: HttpResponse(str(number)))]
urlpatterns = [path("api/", include(items))]
django.setup()
if sys.argv[1] == "asgi":
    from django.core.asgi import get_asgi_application
    handle = gpuscale.instrument(get_asgi_application(), port=0, gpu="none")
    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(handle.app), base_url="http://test") as client:
            for url in ("/api/items/1", "/nothing"):
                await client.get(url)
    asyncio.run(ask())
else:
    from django.core.wsgi import get_wsgi_application
    handle = gpuscale.instrument(get_wsgi_application(), port=0, gpu="none")
    with httpx.Client(transport=httpx.WSGITransport(handle.app), base_url="http://test") as client:
        for url in ("/api/items/1", "/nothing"):
            client.get(url)
found = {key: n for key, n in handle._publication.totals().requests.items() if n}
assert found == {("GET", "/api/items/<int:number>", "200"): 1, ("GET", "unmatched", "404"): 1}, found
handle.close()
"""


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_django(interface: str) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", DJANGO, interface], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_endpoint_publishes_the_contracts_series_and_the_apps_own(opened: list[gpuscale.Metrics[Any]]) -> None:
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


def test_a_second_call_returns_the_same_handle(opened: list[gpuscale.Metrics[Any]]) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    handle = mount(app, opened)
    assert gpuscale.instrument(app, port=0) is handle
    assert gpuscale.instrument(handle.app, port=0) is handle
    with pytest.raises(ConfigurationError, match="unknown option 'prot'"):
        gpuscale.instrument(app, prot=9445)


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_instrumenting_again_after_close_publishes_again(opened: list[gpuscale.Metrics[Any]], kind: str) -> None:
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


def test_metrics_on_the_app_itself(opened: list[gpuscale.Metrics[Any]]) -> None:
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


def test_metrics_on_a_wsgi_app_itself(opened: list[gpuscale.Metrics[Any]]) -> None:
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


def test_bare_callables_and_what_is_none(opened: list[gpuscale.Metrics[Any]]) -> None:
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


def test_two_apps_with_different_options_on_one_port(opened: list[gpuscale.Metrics[Any]]) -> None:
    from fastapi import FastAPI

    port = free_port()
    first = mount(FastAPI(), opened, port=port)
    second = mount(FastAPI(), opened, port=port)
    assert first._publication is second._publication
    with pytest.raises(ConfigurationError, match=r"buckets=\(1\.0, 2\.0\)"):
        gpuscale.instrument(FastAPI(), port=port, gpu="none", address="127.0.0.1", buckets=(1, 2))
