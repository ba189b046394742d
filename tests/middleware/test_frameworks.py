"""Route templates with their prefixes on each framework."""

from __future__ import annotations

from typing import Any

import pytest

from tests.middleware.mounted import Handles, ask, counted, mount


def test_fastapi_routes_with_the_prefixes_of_routers_and_mounts(opened: Handles) -> None:
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


def test_a_middleware_by_hand_around_the_whole_app_knows_its_routes(opened: Handles) -> None:
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


def test_a_root_path_in_front_of_probes_and_ambiguous_routes(opened: Handles) -> None:
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


def test_starlette_one_endpoint_under_two_routes(opened: Handles) -> None:
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


def test_litestar(opened: Handles) -> None:
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


def test_quart(opened: Handles) -> None:
    from quart import Quart

    app = Quart(__name__)

    @app.get("/items/<int:number>")
    async def items(number: int) -> str:
        return str(number)

    handle = mount(app, opened)
    ask(app, "/items/1", "/items/2", "/nothing")
    assert counted(handle) == {("GET", "/items/<int:number>", "200"): 2, ("GET", "unmatched", "404"): 1}


def test_flask_with_a_blueprint(opened: Handles) -> None:
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
