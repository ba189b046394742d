"""A sequence-classification checkpoint, loaded from disk: texts in, probabilities out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bert_intent.settings import ServiceSettings

logger = logging.getLogger("bert_intent")

MAX_TOKENS = 128
"""Longer texts are cut: 512 characters of prose have about 110 tokens, and the bound keeps a batch's cost bounded."""
MAX_PADDED_TOKENS = 8192
"""Of one forward pass, padding included: bounds its memory."""


class ModelError(Exception):
    """The checkpoint cannot be used; the message says which one and why."""


class Prediction(NamedTuple):
    """``probabilities`` are in the order of the classifier's ``labels`` and add up to 1."""

    intent: str
    probabilities: list[float]


class Classifier(Protocol):
    """What the service needs of a model. ``classify`` is called by one thread at a time."""

    labels: Sequence[str]
    description: str

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """A prediction for each text, in their order."""


class BertClassifier:
    """A Hugging Face checkpoint on a device: half precision on CUDA, float32 on the CPU."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        config = model.config
        self.labels: Sequence[str] = [str(config.id2label[index]) for index in range(config.num_labels)]
        self._max_tokens = min(
            MAX_TOKENS, tokenizer.model_max_length, getattr(config, "max_position_embeddings", MAX_TOKENS)
        )
        millions = sum(weights.numel() for weights in model.parameters()) / 1e6
        precision = str(model.dtype).removeprefix("torch.")
        self.description = f"{config.model_type}, {millions:.1f} M parameters, {precision} on {device}"

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """A prediction for each text, in their order; texts of like length share a forward pass."""
        import torch

        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        predictions: dict[int, Prediction] = {}
        with torch.inference_mode():
            for part in like_lengths(lengths):
                columns = {name: [column[index] for index in part] for name, column in tokens.items()}
                inputs = self._tokenizer.pad(columns, return_tensors="pt").to(self._device)
                # In float32: half precision would round the small probabilities away.
                rows = torch.softmax(self._model(**inputs).logits.float(), dim=-1).tolist()
                for index, row in zip(part, rows, strict=True):
                    best = max(range(len(row)), key=row.__getitem__)
                    predictions[index] = Prediction(self.labels[best], row)
        return [predictions[index] for index in range(len(texts))]


def like_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of ``lengths`` sorted by length, cut into parts that have little padding.

    A part ends before a text that is more than half as long again as its shortest (and 8 tokens: for short texts
    a forward pass more costs more than the padding), or before it would exceed MAX_PADDED_TOKENS.
    """
    part: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        shortest = lengths[part[0]] if part else length
        if part and (length > shortest * 1.5 + 8 or length * (len(part) + 1) > MAX_PADDED_TOKENS):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def load(settings: ServiceSettings, threads: int) -> BertClassifier:
    """Load ``settings.model`` (a folder without any network, else a name on the hub) and warm it up.

    Call it in the thread that will classify: the threads of a forward pass belong to the thread that starts it.
    Raises ModelError.
    """
    _require_folder(settings.model)
    # Its own thread pool would compete with the forward pass, and a batch is tokenised in under a millisecond.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = _device(settings.device)
    torch.set_num_threads(threads)
    local = os.path.isdir(settings.model)
    precision = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, local_files_only=local)
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.model, local_files_only=local, dtype=precision
        )
    except Exception as error:  # the formats' libraries each have errors of their own
        raise ModelError(f"cannot load BERT_MODEL={settings.model}: {error}") from error
    if model.config.num_labels < 2:
        raise ModelError(f"BERT_MODEL={settings.model} has {model.config.num_labels} label; a classifier has 2 or more")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    classifier = BertClassifier(model.eval().to(device), tokenizer, device)
    warm_up(classifier, settings.max_batch)
    logger.info("loaded %s: %s, %d threads", settings.model, classifier.description, threads)
    return classifier


def warm_up(classifier: Classifier, max_batch: int) -> None:
    """Run the shapes that will come, so that no request pays for kernels and buffers that load at first use."""
    for size in sorted({1, 2, 8, max_batch}):
        for text in ("music", "book a table for two at a restaurant near the sea tomorrow evening"):
            classifier.classify([text] * size)


def _require_folder(model: str) -> None:
    """Say what is wrong with a path before transformers takes it for a name on the hub."""
    path = Path(model)
    looks_like_path = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"BERT_MODEL={model} has no config.json; it must be a checkpoint in Hugging Face format")
    elif looks_like_path:
        raise ModelError(f"BERT_MODEL={model} is no folder; give a checkpoint folder or a name on the hub")


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"BERT_DEVICE={wanted}, but torch sees no CUDA device; use BERT_DEVICE=auto or cpu")
    return wanted
