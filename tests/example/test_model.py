"""Loading checkpoints from disk and classifying in batches; the shipped checkpoint's expected answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bert_intent.model import MAX_PADDED_TOKENS, BertClassifier, ModelError, like_lengths, load
from bert_intent.settings import OWN_CHECKPOINT, ServiceSettings
from hypothesis import given
from hypothesis import strategies as st

from .conftest import EXAMPLE, INTENTS, REPOSITORY


@given(st.lists(st.integers(1, 128), max_size=200))
def test_parts_hold_each_text_once_and_little_padding(lengths: list[int]) -> None:
    parts = list(like_lengths(lengths))
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        longest = max(lengths[index] for index in part)
        assert longest * len(part) <= MAX_PADDED_TOKENS
        assert all(longest <= lengths[index] * 1.5 + 8 for index in part)


def _load(model: object, **options: Any) -> BertClassifier:
    return load(ServiceSettings(model=str(model), device="cpu", max_batch=4, **options), threads=1)


def test_any_checkpoint_can_take_its_place(make_checkpoint: Callable[..., Path]) -> None:
    swapped = _load(make_checkpoint(["refund", "delivery", "other"], always="delivery"))
    assert list(swapped.labels) == ["refund", "delivery", "other"]
    (prediction,) = swapped.classify(["where is my parcel"])
    assert prediction.intent == "delivery"
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("text", ["", "\x00\x01", "🎵" * 512, "a " * 256, "!" * 512, "\u202e\ufeff"])
def test_odd_texts_are_classified(tiny_checkpoint: Path, text: str) -> None:
    assert _load(tiny_checkpoint).classify([text, "music"])[0].intent in INTENTS


def test_without_any_network(tiny_checkpoint: Path) -> None:
    """In a process where every socket is an error, and without the hub's offline switches."""
    script = (
        "import socket, sys\n"
        "def no(*args, **options): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = no\n"
        "from bert_intent.model import load\n"
        "from bert_intent.settings import ServiceSettings\n"
        "model = load(ServiceSettings(model=sys.argv[1], device='cpu'), 1)\n"
        "print(model.classify(['music'])[0].intent)\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tiny_checkpoint)],
        env={**environ, "PYTHONPATH": f"{EXAMPLE}:{REPOSITORY}"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.stdout == "PlayMusic\n", result.stderr


def test_what_cannot_be_loaded_is_named(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        _load(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        _load(tmp_path)
    broken = make_checkpoint()
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load BERT_MODEL="):
        _load(broken)
    truncated = make_checkpoint()
    (truncated / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(ModelError, match="cannot load BERT_MODEL="):
        _load(truncated)


def test_a_cuda_device_that_is_not_there(tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ModelError, match="BERT_DEVICE=cuda:1"):
        load(ServiceSettings(model=str(tiny_checkpoint), device="cuda:1"), 1)


@pytest.fixture(scope="module")
def shipped() -> BertClassifier:
    if not (OWN_CHECKPOINT / "config.json").is_file():
        pytest.skip("no checkpoint in examples/bert_intent/model; train one with examples/bert_intent/training")
    return load(ServiceSettings(device="cpu", max_batch=8), threads=2)


def test_the_shipped_checkpoint_answers_as_anyone_would_expect(shipped: BertClassifier) -> None:
    expected = {"music": "PlayMusic", "weather": "GetWeather", "book a table": "BookRestaurant"}
    assert {text: shipped.classify([text])[0].intent for text in expected} == expected
    assert sorted(shipped.labels) == sorted(INTENTS)


def test_company_in_a_batch_changes_no_answer(shipped: BertClassifier) -> None:
    lines = (EXAMPLE / "data" / "valid.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[1] for line in lines if "\t" in line][::35]
    together = shipped.classify(texts)
    for text, batched in zip(texts, together, strict=True):
        (alone,) = shipped.classify([text])
        assert alone.intent == batched.intent
        assert batched.probabilities == pytest.approx(alone.probabilities, abs=1e-4)


def test_the_shipped_checkpoint_is_small_enough_for_the_repository() -> None:
    if not OWN_CHECKPOINT.is_dir():
        pytest.skip("no checkpoint")
    files = [path for path in OWN_CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32e6
    assert json.loads((OWN_CHECKPOINT / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
