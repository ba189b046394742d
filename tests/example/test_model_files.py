"""The reference service's checkpoint: its size, its labels, and what it answers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "bert_intent"
MODEL = EXAMPLE / "model"
DATA = EXAMPLE / "data"
INTENTS = [
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
]
HELD_OUT_SHARE = 0.9
"""Share of the held-out short phrases that must come out right; 56 phrases, chosen by us."""


@pytest.fixture(scope="module")
def evaluate() -> Any:
    """The example's evaluation script as a module; its folder is no package."""
    folder = str(EXAMPLE / "training")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("evaluate")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def checkpoint(evaluate: Any) -> tuple[Any, Any]:
    """The model, in float32, and its tokenizer, loaded from disk alone."""
    model, tokenizer = evaluate.load(MODEL)
    return model, tokenizer


def test_folder_fits_the_repository() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 32_000_000


def test_labels_name_the_seven_intents() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(index)] for index in range(7)] == INTENTS
    assert config["label2id"] == {name: index for index, name in enumerate(INTENTS)}


def test_weights_are_computed_with_in_float32(checkpoint: tuple[Any, Any]) -> None:
    assert {str(value.dtype) for value in checkpoint[0].parameters()} == {"torch.float32"}


@pytest.mark.parametrize(
    ("query", "intent"),
    [
        ("music", "PlayMusic"),
        ("Music", "PlayMusic"),
        ("PLAY MUSIC", "PlayMusic"),
        ("weather", "GetWeather"),
        ("Weather in Paris?", "GetWeather"),
        ("book a table", "BookRestaurant"),
        ("add this song to my playlist", "AddToPlaylist"),
        ("Rate this book five stars", "RateBook"),
        ("movie times", "SearchScreeningEvent"),
    ],
)
def test_everyday_queries(evaluate: Any, checkpoint: tuple[Any, Any], query: str, intent: str) -> None:
    assert evaluate.predict(*checkpoint, [query]) == [intent]


def test_short_phrases_trained_on(evaluate: Any, checkpoint: tuple[Any, Any]) -> None:
    rows = evaluate.read_rows(DATA / "short_phrases.tsv")
    guesses = evaluate.predict(*checkpoint, [row.text for row in rows])
    assert evaluate.accuracy(rows, guesses) >= 0.98


def test_short_phrases_held_out(evaluate: Any, checkpoint: tuple[Any, Any]) -> None:
    rows = evaluate.read_rows(DATA / "short_phrases_heldout.tsv")
    guesses = evaluate.predict(*checkpoint, [row.text for row in rows])
    assert evaluate.accuracy(rows, guesses) >= HELD_OUT_SHARE


def test_case_does_not_matter(evaluate: Any, checkpoint: tuple[Any, Any]) -> None:
    texts = [row.text for row in evaluate.read_rows(DATA / "short_phrases.tsv")]
    lower = evaluate.probabilities(*checkpoint, texts)
    upper = evaluate.probabilities(*checkpoint, [text.upper() for text in texts])
    assert float((lower - upper).abs().max()) < 1e-4


@pytest.mark.parametrize("text", ["", " ", "?!", "東京の天気", "погода", "🎵", "x" * 5000, "zqxj " * 600, "\x00\u200b"])
def test_any_text_gets_an_answer(evaluate: Any, checkpoint: tuple[Any, Any], text: str) -> None:
    shares = evaluate.probabilities(*checkpoint, [text])[0]
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-5)


def test_pruned_vocabulary_spells_any_latin_word(checkpoint: tuple[Any, Any]) -> None:
    _, tokenizer = checkpoint
    ids = tokenizer("zyzzyva kvass ångström qwertzuiop x9k 東京")["input_ids"]
    assert tokenizer.unk_token_id not in ids


def test_accuracy_is_the_one_reported(evaluate: Any, checkpoint: tuple[Any, Any]) -> None:
    reported = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))["valid_accuracy"]
    rows = evaluate.read_rows(DATA / "valid.tsv")
    guesses = evaluate.predict(*checkpoint, [row.text for row in rows])
    assert evaluate.accuracy(rows, guesses) >= reported - 0.003
