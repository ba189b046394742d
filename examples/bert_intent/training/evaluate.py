"""Accuracy and confusion table of any checkpoint folder on any ``Intent<TAB>words`` file.

    python examples/bert_intent/training/evaluate.py \
        --model examples/bert_intent/model --rows examples/bert_intent/data/valid.tsv
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from intent_rows import Row, read_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_TOKENS = 64
"""Longer sentences are cut; the longest SNIPS sentence has 35 words."""


def load(folder: Path) -> tuple[Any, Any]:
    """Load a checkpoint from disk alone, its weights as float32 whatever they are stored in."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.float().eval(), tokenizer


def probabilities(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 64) -> torch.Tensor:
    """Return one row of label probabilities a text, in the texts' order."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    result = torch.zeros(len(texts), int(model.config.num_labels))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = tokenizer(
            [texts[index] for index in part],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            result[part] = torch.softmax(model(**inputs).logits, dim=-1)
    return result


def predict(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 64) -> list[str]:
    """Return the most probable intent of every text."""
    best = probabilities(model, tokenizer, texts, batch).argmax(dim=-1).tolist()
    return [str(model.config.id2label[index]) for index in best]


def accuracy(rows: Sequence[Row], predicted: Sequence[str]) -> float:
    """Return the share of rows (0 to 1) whose intent was predicted."""
    hits = sum(row.intent == guess for row, guess in zip(rows, predicted, strict=True))
    return hits / len(rows)


def confusion_table(rows: Sequence[Row], predicted: Sequence[str]) -> str:
    """Return a Markdown table: a line an intent in the file, a column an intent predicted."""
    counts = Counter((row.intent, guess) for row, guess in zip(rows, predicted, strict=True))
    names = sorted({row.intent for row in rows} | set(predicted))
    lines = [
        "| file \\ predicted | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    lines += [f"| {name} | " + " | ".join(str(counts[name, guess]) for guess in names) + " |" for name in names]
    return "\n".join(lines)


def report(rows: Sequence[Row], predicted: Sequence[str], show_errors: bool) -> str:
    """Return accuracy, confusion table and, where wanted, the rows that went wrong."""
    share = accuracy(rows, predicted)
    wrong = [(row, guess) for row, guess in zip(rows, predicted, strict=True) if row.intent != guess]
    text = f"accuracy {share:.2%} ({len(rows) - len(wrong)} of {len(rows)})\n\n"
    text += confusion_table(rows, predicted)
    if show_errors and wrong:
        text += "\n\n" + "\n".join(f"{row.intent} taken for {guess}: {row.text}" for row, guess in wrong)
    return text


def main() -> None:
    """Read the arguments, predict every row, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--rows", type=Path, required=True, help="Intent<TAB>words file")
    parser.add_argument("--batch", type=int, default=64, help="sentences a forward pass")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--errors", action="store_true", help="list the wrong rows too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model)
    rows = read_rows(args.rows)
    began = time.perf_counter()
    predicted = predict(model, tokenizer, [row.text for row in rows], args.batch)
    seconds = time.perf_counter() - began
    print(report(rows, predicted, args.errors))
    print(f"\n{seconds:.1f} s for {len(rows)} rows, {args.threads} threads")


if __name__ == "__main__":
    main()
