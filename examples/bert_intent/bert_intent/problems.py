"""Errors as their client reads them: a sentence as text, or as JSON ``{"detail": …}``."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from bert_intent.negotiation import prefers_json

BUSY_RETRY_SECONDS = 1
"""What a full queue takes to empty, generously: 256 texts are about 0.3 s on two cores."""


class Problem(HTTPException):
    """A request that cannot be answered; ``detail`` says what is wanted instead."""


def bad_query(detail: str) -> Problem:
    """400: the query of a GET."""
    return Problem(400, detail)


def busy(detail: str) -> Problem:
    """503 with Retry-After."""
    return Problem(503, detail, headers={"Retry-After": str(BUSY_RETRY_SECONDS)})


async def answer_problem(request: Request, error: Exception) -> Response:
    """The answer to a Problem and to the framework's own 404 and 405."""
    assert isinstance(error, HTTPException)
    headers = {**(error.headers or {}), "Vary": "Accept", "Cache-Control": "no-store"}
    if prefers_json(accepted(request), default=request.method == "POST"):
        return JSONResponse({"detail": error.detail}, error.status_code, headers)
    return PlainTextResponse(error.detail, error.status_code, headers)


async def answer_crash(request: Request, error: Exception) -> Response:
    """The answer to an error that nobody foresaw; the server logs it."""
    return await answer_problem(request, HTTPException(500, "the service failed to answer; its log says why"))


def accepted(request: Request) -> str:
    """The client's Accept header; several are one, joined by commas (RFC 9110, 5.3)."""
    return ",".join(request.headers.getlist("accept"))


def install(app: FastAPI) -> None:
    """Answer all errors of ``app`` this way."""
    app.add_exception_handler(HTTPException, answer_problem)
    app.add_exception_handler(Exception, answer_crash)
