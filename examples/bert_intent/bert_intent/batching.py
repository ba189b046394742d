"""Dynamic micro-batching: requests wait in a bounded queue, one thread takes what waits whenever it is free.

Nothing is delayed to fill a batch: an idle service answers a single request at once, and under load the batch is
what came while the last one ran.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter
from typing import Protocol

from bert_intent.model import Classifier, Prediction

logger = logging.getLogger("bert_intent")

UNHEALTHY_AFTER = 3
"""Batches that failed wholly in a row: then the device is taken for broken."""
STUCK_SECONDS = 60.0
"""One batch takes milliseconds, on a slow CPU seconds; after this the device is taken for hung."""


class QueueFullError(Exception):
    """As many texts wait as may wait."""


class NotRunningError(Exception):
    """The model is not loaded yet, or the batcher was closed."""


class InferenceError(Exception):
    """The model failed on this request's texts."""


class Observer(Protocol):
    """What is told about the queue and the batches; from both threads."""

    def queued(self, change: int) -> None:
        """``change`` texts more (or, negative, fewer) wait."""

    def ran(self, size: int, seconds: float) -> None:
        """A batch of ``size`` texts took ``seconds`` in the model."""


class _Ticket:
    """The texts of one request and the future that its handler awaits."""

    __slots__ = ("future", "loop", "texts")

    def __init__(self, texts: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        self.texts = texts
        self.loop = loop
        self.future: asyncio.Future[list[Prediction]] = loop.create_future()


class Batcher:
    """A queue and the one thread that owns the model. ``load`` is called in that thread."""

    def __init__(self, *, max_batch: int, queue_limit: int, observer: Observer) -> None:
        self._max_batch = max_batch
        self._queue_limit = queue_limit
        self._observer = observer
        self._waiting: deque[_Ticket] = deque()
        self._depth = 0
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None
        self.classifier: Classifier | None = None

    def start(self, load: Callable[[], Classifier], loaded: Callable[[BaseException | None], None]) -> None:
        """Start the thread. ``loaded`` is called from it when ``load`` has returned (None) or failed."""
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name="bert-intent", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Texts that wait."""
        return self._depth

    def trouble(self) -> str | None:
        """Why the model cannot be expected to answer any more, or None."""
        if self._failures >= UNHEALTHY_AFTER:
            return f"the last {self._failures} batches failed"
        since = self._busy_since
        if since is not None and monotonic() - since > STUCK_SECONDS:
            return f"a batch has been running for {monotonic() - since:.0f} s"
        return None

    def submit(self, texts: Sequence[str]) -> asyncio.Future[list[Prediction]]:
        """Queue ``texts`` as one request; the future has their predictions, or InferenceError.

        Cancelling the future takes the request out of the queue. Raises QueueFullError, NotRunningError. Call it
        on the event loop.
        """
        ticket = _Ticket(texts, asyncio.get_running_loop())
        with self._changed:
            if self.classifier is None or self._closing:
                raise NotRunningError("the model is not loaded")
            if self._depth + len(texts) > self._queue_limit:
                raise QueueFullError(f"{self._depth} texts wait")
            self._waiting.append(ticket)
            self._count(len(texts))
            self._changed.notify()
        ticket.future.add_done_callback(lambda future: self._withdraw(ticket) if future.cancelled() else None)
        return ticket.future

    def close(self, timeout: float) -> bool:
        """Take no more, answer what waits, end the thread; False when that took longer than ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def _withdraw(self, ticket: _Ticket) -> None:
        with self._changed:
            try:
                self._waiting.remove(ticket)
            except ValueError:
                return  # its batch runs already
            self._count(-len(ticket.texts))

    def _count(self, change: int) -> None:
        self._depth += change
        self._observer.queued(change)

    def _run(self, load: Callable[[], Classifier], loaded: Callable[[BaseException | None], None]) -> None:
        try:
            self.classifier = load()
        except BaseException as error:
            loaded(error)
            return
        loaded(None)
        while batch := self._take():
            self._busy_since = monotonic()
            outcomes = self._classify(batch)
            self._busy_since = None
            _deliver(batch, outcomes)

    def _take(self) -> list[_Ticket]:
        """The oldest requests that fit a batch, at least one; empty when closed and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            batch: list[_Ticket] = []
            size = 0
            while self._waiting and (not batch or size + len(self._waiting[0].texts) <= self._max_batch):
                ticket = self._waiting.popleft()
                size += len(ticket.texts)
                batch.append(ticket)
            self._count(-size)
            return batch

    def _classify(self, batch: list[_Ticket]) -> list[list[Prediction] | InferenceError]:
        try:
            outcomes = self._forward(batch)
        except Exception:
            logger.exception("a batch of %d requests failed", len(batch))
            # One request's text may be the reason: it must not take the others with it.
            outcomes = [self._alone(ticket) for ticket in batch] if len(batch) > 1 else [InferenceError()]
        failed = all(isinstance(outcome, InferenceError) for outcome in outcomes)
        self._failures = self._failures + 1 if failed else 0
        return outcomes

    def _alone(self, ticket: _Ticket) -> list[Prediction] | InferenceError:
        try:
            return self._forward([ticket])[0]
        except Exception:
            return InferenceError()

    def _forward(self, batch: list[_Ticket]) -> list[list[Prediction] | InferenceError]:
        assert self.classifier is not None
        texts = [text for ticket in batch for text in ticket.texts]
        began = perf_counter()
        predictions = iter(self.classifier.classify(texts))
        self._observer.ran(len(texts), perf_counter() - began)
        return [[next(predictions) for _ in ticket.texts] for ticket in batch]


def _deliver(batch: list[_Ticket], outcomes: list[list[Prediction] | InferenceError]) -> None:
    """Hand each outcome to its request's event loop, in one call per loop."""
    pairs = list(zip(batch, outcomes, strict=True))
    for loop in {ticket.loop for ticket in batch}:
        try:
            loop.call_soon_threadsafe(_resolve, [pair for pair in pairs if pair[0].loop is loop])
        except RuntimeError:
            logger.warning("the event loop was closed before its last %d answers", len(batch))


def _resolve(pairs: list[tuple[_Ticket, list[Prediction] | InferenceError]]) -> None:
    for ticket, outcome in pairs:
        if ticket.future.done():
            continue  # cancelled while its batch ran
        if isinstance(outcome, InferenceError):
            ticket.future.set_exception(outcome)
        else:
            ticket.future.set_result(outcome)
