"""The queue and its one thread: order, bound, cancellation, faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bert_intent.batching import UNHEALTHY_AFTER, Batcher, InferenceError, NotRunningError, QueueFullError
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import FakeClassifier, run


class Observed:
    """Sums up what a batcher reports."""

    def __init__(self) -> None:
        self.depth = 0
        self.sizes: list[int] = []
        self._lock = threading.Lock()

    def queued(self, change: int) -> None:
        with self._lock:
            self.depth += change
            assert self.depth >= 0

    def ran(self, size: int, seconds: float) -> None:
        assert seconds >= 0
        self.sizes.append(size)


class Echo(FakeClassifier):
    """Every text's prediction carries the text itself."""

    def classify(self, texts: Any) -> Any:
        predictions = super().classify(texts)
        return [one._replace(intent=text) for one, text in zip(predictions, texts, strict=True)]


@asynccontextmanager
async def running(classifier: FakeClassifier, **options: Any) -> AsyncIterator[tuple[Batcher, Observed]]:
    observed = Observed()
    batcher = Batcher(**{"max_batch": 8, "queue_limit": 64, "observer": observed, **options})
    ready = threading.Event()
    batcher.start(lambda: classifier, lambda error: ready.set())
    assert await asyncio.to_thread(ready.wait, 20)
    try:
        yield batcher, observed
    finally:
        classifier.gate.set()
        assert await asyncio.to_thread(batcher.close, 20)


async def block(batcher: Batcher, classifier: FakeClassifier) -> asyncio.Future[Any]:
    """Have the thread hold a first batch at the gate."""
    classifier.gate.clear()
    first = batcher.submit(["first"])
    assert await asyncio.to_thread(classifier.entered.acquire, timeout=20)
    return first


def test_an_idle_batcher_takes_a_single_request_at_once() -> None:
    async def test() -> None:
        async with running(Echo()) as (batcher, observed):
            assert [one.intent for one in await batcher.submit(["a"])] == ["a"]
            assert observed.sizes == [1]

    run(test)


def test_what_came_meanwhile_is_one_batch_in_order_up_to_its_size() -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, observed):
            first = await block(batcher, classifier)
            futures = [batcher.submit([f"{index}"]) for index in range(11)]
            assert batcher.depth == observed.depth == 11
            classifier.gate.set()
            answers = [(await future)[0].intent for future in futures]
            assert answers == [f"{index}" for index in range(11)]
            assert (await first)[0].intent == "first"
            assert classifier.batches == [["first"], [f"{i}" for i in range(8)], ["8", "9", "10"]]
            assert (batcher.depth, observed.depth, observed.sizes) == (0, 0, [1, 8, 3])

    run(test)


def test_a_request_larger_than_a_batch_is_one_batch() -> None:
    async def test() -> None:
        async with running(Echo()) as (batcher, observed):
            texts = [f"{index}" for index in range(20)]
            assert [one.intent for one in await batcher.submit(texts)] == texts
            assert observed.sizes == [20]

    run(test)


def test_the_bound_counts_texts_and_refuses_whole_requests() -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, observed):
            await block(batcher, classifier)
            full = [batcher.submit(["x"] * 32), batcher.submit(["y"] * 31)]
            with pytest.raises(QueueFullError):
                batcher.submit(["a", "b"])
            full.append(batcher.submit(["z"]))
            with pytest.raises(QueueFullError):
                batcher.submit(["a"])
            assert observed.depth == 64
            classifier.gate.set()
            assert [len(await future) for future in full] == [32, 31, 1]

    run(test)


def test_a_cancelled_request_leaves_the_queue_and_makes_room() -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, observed):
            first = await block(batcher, classifier)
            gone, stays = batcher.submit(["gone"] * 63), batcher.submit(["stays"])
            gone.cancel()
            await asyncio.sleep(0)
            assert batcher.depth == observed.depth == 1
            first.cancel()  # its batch runs already: nothing to take back
            classifier.gate.set()
            assert (await stays)[0].intent == "stays"
            assert classifier.batches == [["first"], ["stays"]]

    run(test)


def test_a_text_that_fails_fails_alone() -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, _):
            first = await block(batcher, classifier)
            good, bad, other = (batcher.submit([text]) for text in ("good", "poison", "other"))
            classifier.gate.set()
            await first
            assert (await good)[0].intent == "good"
            assert (await other)[0].intent == "other"
            with pytest.raises(InferenceError):
                await bad
            assert batcher.trouble() is None

    run(test)


def test_batches_that_fail_in_a_row_are_trouble_until_one_succeeds() -> None:
    async def test() -> None:
        async with running(Echo()) as (batcher, _):
            for _ in range(UNHEALTHY_AFTER):
                assert batcher.trouble() is None
                with pytest.raises(InferenceError):
                    await batcher.submit(["poison"])
            assert "failed" in (batcher.trouble() or "")
            await batcher.submit(["good"])
            assert batcher.trouble() is None

    run(test)


def test_a_hung_batch_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, _):
            first = await block(batcher, classifier)
            assert batcher.trouble() is None
            monkeypatch.setattr("bert_intent.batching.STUCK_SECONDS", -1.0)
            assert "has been running" in (batcher.trouble() or "")
            classifier.gate.set()
            await first

    run(test)


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, _):
            await block(batcher, classifier)
            waiting = [batcher.submit([f"{index}"]) for index in range(20)]
            assert not batcher.close(0.01)  # the model hangs at the gate
            with pytest.raises(NotRunningError):
                batcher.submit(["late"])
            classifier.gate.set()
            assert [(await future)[0].intent for future in waiting] == [f"{index}" for index in range(20)]

    run(test)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["submit", "cancel", "yield", "gate"]), st.integers(0, 9)), max_size=60))
def test_any_interleaving_ends_empty_with_everyone_answered(steps: list[tuple[str, int]]) -> None:
    async def test() -> None:
        classifier = Echo()
        async with running(classifier) as (batcher, observed):
            made: list[tuple[asyncio.Future[Any], list[str]]] = []
            for step, number in steps:
                if step == "submit":
                    texts = [f"{len(made)}.{index}" for index in range(number + 1)]
                    try:
                        made.append((batcher.submit(texts), texts))
                    except QueueFullError:
                        assert batcher.depth + number + 1 > 64
                elif step == "cancel" and made:
                    made[number % len(made)][0].cancel()
                elif step == "gate":
                    (classifier.gate.set if number % 2 else classifier.gate.clear)()
                else:
                    await asyncio.sleep(0)
            classifier.gate.set()
            for future, texts in made:
                if not future.cancelled():
                    assert [one.intent for one in await future] == texts
            await asyncio.sleep(0)
            assert batcher.depth == observed.depth == 0

    run(test)
