"""Prune a WordPiece vocabulary to what the repository's size limit leaves room for.

The base model's 30,522 word vectors are half of its weights. English voice commands
need a fraction of them, so the table is cut to the pieces that matter and every
other word is spelled with the smaller pieces that stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_POSITIONS = 512


def is_character(piece: str) -> bool:
    """Say whether a piece is one character, at a word's start or inside it."""
    return len(piece.removeprefix("##")) == 1


def choose_pieces(base: Tokenizer, texts: Iterable[str], size: int) -> list[int]:
    """Return the ids to keep, in their old order.

    Kept: the special tokens, every single character (so no input that the base model
    could spell becomes unknown), every piece that the training texts use, then the
    base vocabulary from its start up to ``size``. BERT's vocabulary is ordered by
    frequency after its characters, so that fill is the most common English pieces.
    """
    vocab: dict[str, int] = base.get_vocab()
    keep = {vocab[piece] for piece in SPECIAL}
    keep.update(number for piece, number in vocab.items() if is_character(piece))
    for encoding in base.encode_batch(list(texts)):
        keep.update(encoding.ids)
    by_frequency = sorted(number for piece, number in vocab.items() if not piece.startswith("[unused"))
    for number in by_frequency:
        if len(keep) >= size:
            break
        keep.add(number)
    return sorted(keep)


def pruned_tokenizer(base_json: Path, keep: list[int]) -> dict[str, Any]:
    """Return a copy of a ``tokenizer.json`` that knows only the kept pieces."""
    spec: dict[str, Any] = json.loads(base_json.read_text(encoding="utf-8"))
    old = {number: piece for piece, number in spec["model"]["vocab"].items()}
    vocab = {old[number]: new for new, number in enumerate(keep)}
    spec["model"]["vocab"] = vocab
    for token in spec["added_tokens"]:
        token["id"] = vocab[token["content"]]
    for token in spec["post_processor"]["special_tokens"].values():
        token["ids"] = [vocab[piece] for piece in token["tokens"]]
    # The base file pads and cuts everything to 128 tokens; callers decide here.
    spec["truncation"] = None
    spec["padding"] = None
    return spec


def write_tokenizer(base_dir: Path, out_dir: Path, texts: Iterable[str], size: int) -> list[int]:
    """Write the pruned tokenizer's files and return the kept ids of the base."""
    base_json = base_dir / "tokenizer.json"
    base = Tokenizer.from_file(str(base_json))
    base.no_padding()
    base.no_truncation()
    keep = choose_pieces(base, texts, size)
    out_dir.mkdir(parents=True, exist_ok=True)
    spec = pruned_tokenizer(base_json, keep)
    _write_json(out_dir / "tokenizer.json", spec)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": MAX_POSITIONS,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    _write_json(out_dir / "tokenizer_config.json", settings)
    (out_dir / "vocab.txt").write_text("".join(f"{piece}\n" for piece in spec["model"]["vocab"]), encoding="utf-8")
    return keep


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
