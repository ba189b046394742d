"""What the HTTP side makes of the queue: its bound, clients that go away, probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from bert_intent.batching import UNHEALTHY_AFTER

from .conftest import FakeClassifier, make_app, run


@asynccontextmanager
async def served(classifier: FakeClassifier, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    app = make_app(classifier, **options)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        try:
            yield client, app.state.service
        finally:
            classifier.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_over_the_bound_the_answer_is_503_with_retry_after() -> None:
    async def test() -> None:
        classifier = FakeClassifier()
        async with served(classifier, queue_limit=64) as (client, service):
            classifier.gate.clear()
            first = asyncio.ensure_future(client.get("/predict?query=first"))
            await until(lambda: len(classifier.batches) == 1)
            waiting = [asyncio.ensure_future(client.get(f"/predict?query={index}")) for index in range(64)]
            await until(lambda: service.batcher.depth == 64)
            refused = await client.get("/predict?query=late", headers={"accept": "application/json"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "64 texts wait" in refused.json()["detail"]
            assert (await client.get("/healthz")).status_code == 200  # full is not broken
            classifier.gate.set()
            answers = await asyncio.gather(first, *waiting)
            assert {answer.status_code for answer in answers} == {200}

    run(test)


def test_a_client_that_goes_away_leaves_the_queue() -> None:
    async def test() -> None:
        classifier = FakeClassifier()
        async with served(classifier) as (client, service):
            classifier.gate.clear()
            first = asyncio.ensure_future(client.get("/predict?query=first"))
            await until(lambda: len(classifier.batches) == 1)
            gone = asyncio.Event()
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
                "path": "/predict", "raw_path": b"/predict", "query_string": b"query=gone", "root_path": "",
                "headers": [], "client": ("127.0.0.1", 1), "server": ("t", 80), "app": service,
            }  # fmt: skip
            request = asyncio.ensure_future(client._transport.app(scope, receive, send))  # type: ignore[attr-defined]
            await until(lambda: service.batcher.depth == 1)
            gone.set()
            await request
            assert service.batcher.depth == 0
            assert sent[0]["status"] == 499
            classifier.gate.set()
            assert (await first).status_code == 200
            assert classifier.batches == [["first"]]

    run(test)


def test_probes_tell_of_loading_trouble_and_draining() -> None:
    async def test() -> None:
        classifier = FakeClassifier()
        app = make_app(classifier)
        service = app.state.service
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:

            async def probes() -> tuple[int, int]:
                return (await client.get("/healthz")).status_code, (await client.get("/readyz")).status_code

            assert await probes() == (200, 503)
            loading = await client.get("/predict?query=music")
            assert loading.status_code == 503
            assert "loading the model" in loading.text
            async with app.router.lifespan_context(app):
                while await probes() != (200, 200):
                    await asyncio.sleep(0.01)
                for _ in range(UNHEALTHY_AFTER):
                    assert (await client.get("/predict?query=poison")).status_code == 500
                assert await probes() == (503, 503)
                assert (await client.get("/predict?query=music")).status_code == 200
                assert await probes() == (200, 200)
                service.lifecycle.drain()
                assert await probes() == (200, 503)
                last = await client.get("/predict?query=music")
                assert last.content == b"PlayMusic"
                assert last.headers["connection"] == "close"

    run(test)
