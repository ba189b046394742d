"""Everything beside ``/predict``: probes, the page at ``/``, its figures, the OpenAPI page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from bert_intent.figures import live_figures
from bert_intent.lifecycle import READY

if TYPE_CHECKING:
    from bert_intent.service import Service

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html"}
FIGURES_PATH = "/figures"
POLICY = {
    # Nothing from elsewhere: the pages work in a cluster without a way out.
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter()
PROBE_503 = {
    503: {"description": "Not now; the body says why.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/healthz", tags=["probes"], response_class=PlainTextResponse, responses=PROBE_503)  # type: ignore[arg-type]
async def healthz(request: Request) -> PlainTextResponse:
    """200 while this process can be expected to answer; else it must be restarted."""
    service: Service = request.app.state.service
    trouble = service.batcher.trouble()
    return PlainTextResponse(trouble or "ok", 503 if trouble else 200)


@router.get("/readyz", tags=["probes"], response_class=PlainTextResponse, responses=PROBE_503)  # type: ignore[arg-type]
async def readyz(request: Request) -> PlainTextResponse:
    """200 from the end of the warm-up until SIGTERM."""
    service: Service = request.app.state.service
    trouble = service.batcher.trouble()
    ready = service.lifecycle.state == READY and trouble is None
    return PlainTextResponse(trouble or service.lifecycle.state, 200 if ready else 503)


@router.get(FIGURES_PATH, tags=["page"])
def figures(request: Request) -> JSONResponse:
    """Live GPU, request and batch figures, as the page at / shows them."""
    service: Service = request.app.state.service
    return JSONResponse(live_figures(service, service.metrics), headers={"Cache-Control": "no-store"})


@router.get("/", include_in_schema=False)
def page() -> Response:
    """Type a sentence, see its intent and the live figures."""
    return _file("index.html")


@router.get("/docs", include_in_schema=False)
def docs() -> Response:
    """The API, from /openapi.json, without anything from elsewhere."""
    return _file("docs.html")


@router.get("/static/{name}", include_in_schema=False)
def static(name: str) -> Response:
    """Scripts and styles of the pages."""
    return _file(name)


def _file(name: str) -> Response:
    # One flat folder that ships with the service: a name is looked up in its listing, never joined to a path.
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    if name not in files:
        raise HTTPException(404, "there is no such file")
    kind = TYPES[files[name].suffix]
    return HTMLResponse(files[name].read_bytes(), media_type=kind, headers={**POLICY, "Cache-Control": "no-cache"})
