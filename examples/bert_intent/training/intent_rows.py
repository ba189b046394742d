"""Rows of the intent files and the token batches made of them.

A file holds one ``Intent<TAB>words`` a line, UTF-8, without a header; empty lines
and lines that start with ``#`` are skipped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One labelled sentence."""

    intent: str
    text: str


class Example(NamedTuple):
    """One sentence as token ids, with the probability wanted for every label."""

    ids: list[int]
    target: list[float]


def read_rows(path: Path) -> list[Row]:
    """Read an ``Intent<TAB>words`` file; a line without a tab is an error."""
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        intent, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}:{number}: no tab between the intent and the words")
        rows.append(Row(intent.strip(), text.strip()))
    return rows


def label_names(rows: Sequence[Row]) -> list[str]:
    """Return the intents in alphabetical order: the order of the model's outputs."""
    return sorted({row.intent for row in rows})


def one_hot(index: int, size: int) -> list[float]:
    """Return a target with all its probability on one label."""
    return [1.0 if i == index else 0.0 for i in range(size)]


def split_folds(count: int, folds: int, seed: int) -> list[list[int]]:
    """Split ``range(count)`` at random into ``folds`` parts of nearly equal size."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [sorted(order[part::folds]) for part in range(folds)]


def batches(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield shuffled batches of indices whose sentences are of similar length.

    Padding would be about half of all tokens if batches were drawn blindly
    (2 to 35 words a sentence). Chunks of 20 batches are sorted by length inside,
    so a batch is nearly free of padding and its company still changes every epoch.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    chunk = size * 20
    made: list[list[int]] = []
    for start in range(0, len(order), chunk):
        part = sorted(order[start : start + chunk], key=lambda index: lengths[index])
        made.extend(part[at : at + size] for at in range(0, len(part), size))
    rng.shuffle(made)
    yield from made
