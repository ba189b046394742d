"""The training loop: AdamW, warm-up then linear decay, averaged weights, soft targets."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from augment import mask_tokens, vary
from evaluate import MAX_TOKENS
from intent_rows import Example, batches
from torch.nn.functional import log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vocabulary import write_tokenizer


@dataclass(frozen=True)
class Settings:
    """What one training run is steered by."""

    epochs: int = 5
    batch: int = 32
    learning_rate: float = 8e-5
    head_rate: float = 5e-4
    """Learning rate of the new classifier layer, which starts at random."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises from nothing."""
    weight_decay: float = 0.01
    smoothing: float = 0.05
    """Probability taken from the label and spread evenly over all labels."""
    masked: float = 0.06
    """Share of the inner tokens hidden behind the mask token."""
    average_decay: float = 0.998
    """Decay a step of the running average of the weights: a window of 500 steps."""
    seed: int = 1


def base_folder(base: str) -> Path:
    """Return the folder of the base weights: a path, or a package that carries ``model/``."""
    if Path(base).is_dir():
        return Path(base)
    spec = find_spec(base.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"{base}: no such folder or package; see training/requirements.txt")
    return Path(spec.origin).parent / "model"


def new_model(base: Path, folder: Path, texts: Sequence[str], labels: Sequence[str], size: int) -> tuple[Any, Any]:
    """Return the base with a pruned vocabulary and a fresh classifier, and its tokenizer.

    The tokenizer's files are written to ``folder``; ``size`` is in word pieces.
    """
    keep = write_tokenizer(base, folder, texts, size)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        local_files_only=True,
        dtype=torch.float32,
    )
    vectors = model.get_input_embeddings().weight.detach()[keep].clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0))
    model.config.vocab_size = len(keep)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def fit(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[Sequence[float]],
    settings: Settings,
) -> float:
    """Train in place, leave the averaged weights in the model, return the seconds it took."""
    began = time.perf_counter()
    rng = random.Random(settings.seed)
    steps = -(-len(texts) // settings.batch) * settings.epochs
    optimizer, schedule = _optimizer(model, settings, steps)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.average_decay)
    )
    model.train()
    done = 0
    for epoch in range(settings.epochs):
        examples = _examples(tokenizer, texts, targets, settings, rng)
        total = 0.0
        for chosen in batches([len(item.ids) for item in examples], settings.batch, rng):
            loss = _loss(model, [examples[index] for index in chosen], settings.smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            if done > steps * settings.warm_up:
                average.update_parameters(model)
            total += float(loss.detach()) * len(chosen)
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1}: loss {total / len(examples):.4f}, {seconds:.0f} s", flush=True)
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return time.perf_counter() - began


def save(model: Any, folder: Path, record: dict[str, object]) -> None:
    """Write the weights in half precision, and how they came about.

    ``training.json`` is a record for people; nothing reads it.
    """
    half = {name: value.half() for name, value in model.state_dict().items()}
    model.config.architectures = [type(model).__name__]
    # Without its path: where the base lay on one machine says nothing elsewhere.
    model.config._name_or_path = ""
    model.save_pretrained(folder, state_dict=half)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _optimizer(model: Any, settings: Settings, steps: int) -> tuple[Any, Any]:
    """Return AdamW with a faster new head and no decay of vectors, and its schedule."""
    head = [value for name, value in model.named_parameters() if name.startswith("classifier")]
    rest = [item for item in model.named_parameters() if not item[0].startswith("classifier")]
    groups = [
        {"params": head, "lr": settings.head_rate, "weight_decay": 0.0},
        {"params": [v for _, v in rest if v.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [v for _, v in rest if v.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    rising = max(1, int(steps * settings.warm_up))

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (steps - step) / max(1, steps - rising))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _examples(
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[Sequence[float]],
    settings: Settings,
    rng: random.Random,
) -> list[Example]:
    """Return this epoch's sentences as tokens, each with its own chance changes."""
    varied = [vary(text, rng) for text in texts]
    encoded = tokenizer(varied, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    mask_id = int(tokenizer.mask_token_id)
    return [
        Example(mask_tokens(ids, mask_id, settings.masked, rng), list(target))
        for ids, target in zip(encoded, targets, strict=True)
    ]


def _loss(model: Any, chosen: Sequence[Example], smoothing: float) -> torch.Tensor:
    """Return the cross entropy (nats a sentence) against the smoothed targets."""
    longest = max(len(item.ids) for item in chosen)
    ids = torch.tensor([item.ids + [0] * (longest - len(item.ids)) for item in chosen])
    target = torch.tensor([item.target for item in chosen])
    target = target * (1 - smoothing) + smoothing / target.shape[1]
    logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    return -(target * log_softmax(logits, dim=-1)).sum(dim=-1).mean()
