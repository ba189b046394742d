"""A classifier that tests steer, an app around it, and tiny checkpoints made on the spot."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

REPOSITORY = Path(__file__).parent.parent.parent
EXAMPLE = REPOSITORY / "examples" / "bert_intent"
if str(EXAMPLE) not in sys.path:
    sys.path.insert(0, str(EXAMPLE))

from bert_intent.model import Prediction  # noqa: E402
from bert_intent.service import create_app  # noqa: E402
from bert_intent.settings import ServiceSettings  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

INTENTS = ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook", "SearchCreativeWork",
           "SearchScreeningEvent")  # fmt: skip


class FakeClassifier:
    """Answers PlayMusic, but a text that is itself a label with that label; waits while ``gate`` is closed."""

    description = "fake, on no device"

    def __init__(self, labels: Sequence[str] = INTENTS) -> None:
        self.labels: Sequence[str] = labels
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        self.batches.append(list(texts))
        self.entered.release()
        assert self.gate.wait(20), "the test left the gate closed"
        if any("poison" in text for text in texts):
            raise RuntimeError("poisoned")
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Prediction:
        intent = text if text in self.labels else self.labels[min(3, len(self.labels) - 1)]
        rest = 0.1 / (len(self.labels) - 1)
        return Prediction(intent, [0.9 if label == intent else rest for label in self.labels])


def make_app(classifier: FakeClassifier, gpu: str = "none", **settings: Any) -> FastAPI:
    """The service around ``classifier``, its metrics on a free port of loopback."""
    return create_app(
        ServiceSettings(**{"drain_seconds": 0.0, **settings}),
        load=lambda: classifier,
        port=0,
        address="127.0.0.1",
        gpu=gpu,
    )


def run(test: Callable[[], Any]) -> None:
    """A coroutine's whole life on an event loop of its own, at most 30 s of it."""
    asyncio.run(asyncio.wait_for(test(), 30))


@contextmanager
def served(classifier: FakeClassifier, **options: Any) -> Iterator[str]:
    """The service behind uvicorn in a thread; its address on loopback."""
    app = make_app(classifier, **options)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started and app.state.service.lifecycle.state == "ready")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture(scope="module")
def client(classifier: FakeClassifier) -> Iterator[TestClient]:
    """A client of the running service around the fake classifier."""
    app = make_app(classifier)
    with TestClient(app, raise_server_exceptions=False, headers={"accept": "*/*"}) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_checkpoint(labels, always)``: a tiny BERT folder that answers ``always`` to everything."""

    def make(labels: Sequence[str] = INTENTS, always: str = "PlayMusic") -> Path:
        import torch
        from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

        folder = tmp_path_factory.mktemp("checkpoint")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "music", "weather", "book", "a", "table", "play", "the"]
        (folder / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )  # fmt: skip
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            model.classifier.bias[list(labels).index(always)] = 5.0
        model.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """The seven SNIPS intents; everything is PlayMusic."""
    return make_checkpoint()
