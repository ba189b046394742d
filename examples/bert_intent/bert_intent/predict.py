"""``/predict``: an intent for a text, or for several."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel

from bert_intent.batching import InferenceError, NotRunningError, QueueFullError
from bert_intent.model import Prediction
from bert_intent.negotiation import prefers_json
from bert_intent.problems import Problem, accepted, busy
from bert_intent.query import MAX_BODY_BYTES, ManyQueries, OneQuery, read_body, read_query
from bert_intent.settings import MAX_CHARACTERS

if TYPE_CHECKING:
    from bert_intent.service import Service

router = APIRouter(tags=["intent"])

HEADERS = {"Vary": "Accept", "Cache-Control": "no-store"}
"""Each request is answered by the model: a cache in between would take load away that the autoscaler must see."""
CLIENT_CLOSED_REQUEST = 499


class Answer(BaseModel):
    """The most probable intent, and the probability of each."""

    intent: str
    probabilities: dict[str, float]


class Answers(BaseModel):
    """One answer for each text, in their order."""

    predictions: list[Answer]


class Detail(BaseModel):
    """What was wrong, and what is wanted."""

    detail: str


def _problem(description: str) -> dict[str, Any]:
    return {"model": Detail, "description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


BUSY: dict[int | str, dict[str, Any]] = {
    500: _problem("The model failed on this text."),
    503: _problem("Too many texts wait, or the model is not loaded; ask again after Retry-After seconds."),
}
QUERY_PARAMETER = {
    "name": "query",
    "in": "query",
    "required": True,
    "description": f"The sentence, UTF-8, at most {MAX_CHARACTERS} characters, not blank.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": r"\S"},
    "example": "play some music",
}


def body_schema() -> dict[str, Any]:
    """The OpenAPI request body of the POST, which its handler reads by itself in order to bound it."""
    schemas = [model.model_json_schema() for model in (OneQuery, ManyQueries)]
    return {"required": True, "content": {"application/json": {"schema": {"oneOf": schemas}}}}


@router.get(
    "/predict",
    summary="The intent of one sentence",
    response_class=HTMLResponse,
    responses={
        200: {
            "description": "The intent's name as text; with its probabilities when JSON is preferred.",
            "model": Answer,
            "content": {"text/html": {"schema": {"type": "string"}, "example": "PlayMusic"}},
        },
        400: _problem("The query is missing, repeated, empty, too long or not UTF-8."),
        **BUSY,
    },
    openapi_extra={"parameters": [QUERY_PARAMETER]},
)
async def predict(request: Request) -> Response:
    """Answers with the name alone (`text/html`), or with JSON when the client prefers `application/json`."""
    text = read_query(request.scope["query_string"])
    service: Service = request.app.state.service
    predictions = await _predict(service, request, [text])
    if predictions is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if prefers_json(accepted(request)):
        return JSONResponse(_answer(service, predictions[0]), headers=HEADERS)
    return HTMLResponse(html.escape(predictions[0].intent), headers=HEADERS)


@router.post(
    "/predict",
    summary="The intents of one sentence or several",
    response_model=Answer | Answers,
    responses={
        400: _problem("The body is not JSON."),
        413: _problem("The body is too large."),
        415: _problem("The body's media type is not application/json."),
        422: _problem("The JSON is not what is wanted."),
        **BUSY,
    },
    openapi_extra={"requestBody": body_schema()},
)
async def predict_posted(request: Request) -> Response:
    """`{"query": text}` is answered by one answer, `{"queries": [texts]}` by `{"predictions": [answers]}`."""
    body = await _bounded_body(request)
    texts, several = read_body(request.headers.get("content-type", ""), body)
    service: Service = request.app.state.service
    predictions = await _predict(service, request, texts)
    if predictions is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answers = [_answer(service, prediction) for prediction in predictions]
    return JSONResponse({"predictions": answers} if several else answers[0], headers=HEADERS)


def _answer(service: Service, prediction: Prediction) -> dict[str, Any]:
    probabilities = dict(zip(service.labels, prediction.probabilities, strict=True))
    return {"intent": prediction.intent, "probabilities": probabilities}


async def _predict(service: Service, request: Request, texts: Sequence[str]) -> list[Prediction] | None:
    """Their predictions; None when the client went away while they waited. Raises Problem."""
    try:
        predictions = service.batcher.submit(texts)
    except QueueFullError as error:
        raise busy(f"too many requests: {error}; ask again in a second") from None
    except NotRunningError:
        raise busy(f"not ready: {service.lifecycle.state}; ask again in a second") from None
    watch = asyncio.get_running_loop().create_task(_cancel_when_gone(request, predictions))
    try:
        return await predictions
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            return None
        raise  # the server gives this request up
    except InferenceError:
        raise Problem(500, "the model failed on this text; the service's log says why") from None
    finally:
        watch.cancel()


async def _cancel_when_gone(request: Request, predictions: asyncio.Future[list[Prediction]]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    predictions.cancel()


async def _bounded_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)
