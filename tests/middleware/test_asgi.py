"""The ASGI middleware: each request counted once, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuscale.asgi import MetricsMiddleware
from gpuscale.errors import ConfigurationError
from gpuscale.publish.publication import Publication
from gpuscale.settings import Settings
from tests.middleware.mounted import counts

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
START = {"type": "http.response.start", "status": 200, "headers": []}


def scope(path: str = "/x", kind: str = "http", method: str = "GET") -> dict[str, Any]:
    return {"type": kind, "path": path, "method": method, "headers": []}


async def nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def drop(message: MutableMapping[str, Any]) -> None:
    """A server that takes everything."""


def run(app: Any, publication: Publication, given: dict[str, Any] | None = None, receive: Receive = nothing,
        send: Send = drop) -> dict[tuple[str, str, str], float]:  # fmt: skip
    """The counts by labels after one request; what the app raised is raised no further."""
    middleware = MetricsMiddleware(app, publication=publication)
    with contextlib.suppress(Exception, asyncio.CancelledError):
        asyncio.run(middleware(given or scope(), receive, send))
    return counts(publication)


def test_an_answer_counts_at_its_last_byte_not_after_its_background_task(publication: Publication) -> None:
    seen: list[float] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        seen.append(publication.accounting.in_flight)
        await send({"type": "http.response.body", "body": b"b"})
        seen.append(publication.accounting.in_flight)
        await asyncio.sleep(0)

    assert run(app, publication) == {("GET", "unmatched", "200"): 1}
    assert seen == [1, 0]


def test_an_exception_is_a_500_once(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        raise RuntimeError

    assert run(app, publication) == {("GET", "unmatched", "500"): 1}


def test_an_exception_after_the_last_byte_changes_nothing(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b""})
        raise RuntimeError("in a background task")

    assert run(app, publication) == {("GET", "unmatched", "200"): 1}


def test_a_broken_off_answer_is_a_500(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)

    assert run(app, publication) == {("GET", "unmatched", "500"): 1}


def test_a_disconnect_that_the_app_reads_is_a_499(publication: Publication) -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": b"nobody reads it"})

    assert run(app, publication, receive=gone) == {("GET", "unmatched", "499"): 1}


def test_a_disconnect_that_only_the_server_knows_is_a_499(publication: Publication) -> None:
    """uvicorn drops what is sent to a client that has gone and tells nobody but its own cycle."""

    class Cycle:
        disconnected = False

        async def receive(self) -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

    cycle = Cycle()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        cycle.disconnected = True
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    assert run(app, publication, receive=cycle.receive) == {("GET", "unmatched", "499"): 1}


@pytest.mark.parametrize("chunk", [True, False])
def test_a_send_that_fails_is_a_499(publication: Publication, chunk: bool) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"", "more_body": chunk})

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    assert run(app, publication, send=send) == {("GET", "unmatched", "499"): 1}


def test_a_cancelled_request_is_a_499(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        raise asyncio.CancelledError

    assert run(app, publication) == {("GET", "unmatched", "499"): 1}


def test_probes_and_a_second_middleware_are_not_counted(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    assert run(app, publication, scope("/healthz")) == {}
    twice = MetricsMiddleware(app, publication=publication)
    assert run(twice, publication) == {("GET", "unmatched", "200"): 1}


def test_a_websocket_is_in_flight_for_its_lifetime(publication: Publication) -> None:
    messages = iter(["websocket.connect", "websocket.receive", "websocket.disconnect"])

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        assert publication.accounting.in_flight == 1
        await receive()
        assert publication.accounting.in_flight == 0

    found = run(app, publication, scope(kind="websocket"), receive=receive)
    assert found == {("WEBSOCKET", "unmatched", "101"): 1}


def test_a_refused_websocket_is_a_403(publication: Publication) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "websocket.close"})

    assert run(app, publication, scope(kind="websocket")) == {("WEBSOCKET", "unmatched", "403"): 1}


def test_lifespan_starts_the_publication_before_the_app() -> None:
    publication = Publication(Settings.create({}, port=0, gpu="none", address="127.0.0.1"))
    running: list[bool] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        running.append(publication.running)
        await send({"type": "lifespan.startup.complete"})

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    asyncio.run(MetricsMiddleware(app, publication=publication)({"type": "lifespan"}, receive, drop))
    publication.close()
    assert running == [True]


def test_the_loop_is_followed_even_where_the_app_started_publishing_and_has_no_lifespan() -> None:
    publication = Publication(Settings.create({}, port=0, gpu="none", address="127.0.0.1"))
    publication.start()
    assert publication.totals().loop_lag is None

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    asyncio.run(MetricsMiddleware(app, publication=publication)(scope(), nothing, drop))
    assert publication.totals().loop_lag is not None
    publication.close()


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_task_that_the_garbage_collector_ends_is_a_499(publication: Publication, kind: str) -> None:
    """The collector may come in the middle of the accounting of another request, in the same thread."""

    class Forever:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"} if kind == "websocket" else START)
        await Forever()

    running = MetricsMiddleware(app, publication=publication)(scope(kind=kind), nothing, drop)
    running.send(None)
    assert publication.accounting.in_flight == 1
    with publication.accounting._lock:
        del running
        gc.collect()
    method, status = ("WEBSOCKET", "101") if kind == "websocket" else ("GET", "499")
    assert counts(publication) == {(method, "unmatched", status): 1}


def test_a_wrong_option_fails_at_construction_and_is_named(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None: ...

    with pytest.raises(ConfigurationError, match=r"port must be a port from 0 to 65535.*-1"):
        MetricsMiddleware(app, port=-1)
    with pytest.raises(ConfigurationError, match="unknown option 'prot'"):
        MetricsMiddleware(app, prot=9445)
    file = tmp_path / "empty"
    file.write_text("")
    with pytest.raises(ConfigurationError, match=r"tls_cert .* must be a PEM certificate"):
        MetricsMiddleware(app, port=0, tls_cert=str(file), tls_key=str(file))
    with pytest.raises(ConfigurationError, match=r"token_file .* must be a file with a token"):
        MetricsMiddleware(app, port=0, token_file=str(file))


OUTCOMES = ("answer", "stream", "raise", "raise late", "cancel", "disconnect", "break off", "websocket")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=300))
def test_in_flight_never_leaks(plan: list[tuple[str, int, int]]) -> None:
    """Hundreds of concurrent requests and cancellations in random order end at 0, each counted once."""
    publication = Publication(Settings.create({}, port=0, gpu="none"))
    publication.running = True

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        outcome = scope["outcome"]
        for _ in range(scope["pauses"]):
            await asyncio.sleep(0)
        if outcome == "raise":
            raise RuntimeError
        if outcome == "disconnect":
            await receive()
        if outcome == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send(START)
        if outcome == "break off":
            return
        for _ in range(3 if outcome == "stream" else 0):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0)
        if outcome == "cancel":
            await asyncio.sleep(3600)
        await send({"type": "http.response.body", "body": b""})
        if outcome == "raise late":
            raise RuntimeError

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def everything() -> None:
        middleware = MetricsMiddleware(app, publication=publication)
        tasks = []
        for outcome, pauses, cancel_after in plan:
            kind = "websocket" if outcome == "websocket" else "http"
            given = {**scope(kind=kind), "outcome": outcome, "pauses": pauses}
            task = asyncio.create_task(middleware(given, gone, drop))
            tasks.append(task)
            for _ in range(cancel_after):
                await asyncio.sleep(0)
            if outcome == "cancel":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(everything())
    totals = publication.totals()
    lifetimes = sum(values[-1] for values in totals.durations.values())
    assert totals.in_flight == 0
    assert totals.in_flight_seconds == pytest.approx(lifetimes, rel=1e-6, abs=1e-6)
    begun = sum(1 for outcome, _, after in plan if outcome != "cancel" or after)
    assert begun <= sum(totals.requests.values()) <= len(plan)
