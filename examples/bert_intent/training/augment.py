"""Small changes to training sentences that keep their intent.

SNIPS sentences are clean and complete. Users also type single words, misspell them
and add "please"; the changes here teach the model to expect that.
"""

from __future__ import annotations

import random
import string

OPENINGS = ("please", "hey", "can you", "could you", "i want to", "i'd like to", "ok")
CLOSINGS = ("please", "now", "thanks", "for me")


def misspell(word: str, rng: random.Random) -> str:
    """Swap, drop, double or replace one letter of a word of four letters or more."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(string.ascii_lowercase) + word[at + 1 :]


def vary(text: str, rng: random.Random) -> str:
    """Return the sentence, at times with one misspelling or a polite opening or closing."""
    words = text.split()
    if not words:
        return text
    if rng.random() < 0.08:
        at = rng.randrange(len(words))
        words[at] = misspell(words[at], rng)
    if rng.random() < 0.03:
        words.insert(0, rng.choice(OPENINGS))
    if rng.random() < 0.03:
        words.append(rng.choice(CLOSINGS))
    return " ".join(words)


def mask_tokens(ids: list[int], mask_id: int, share: float, rng: random.Random) -> list[int]:
    """Hide a share of a sentence's inner tokens behind the mask token.

    Titles, names and places carry little about the intent, and the test sentences
    hold others than the training ones: hiding some keeps the model from memorising.
    Sentences under five inner tokens stay whole, they may hang on a single word.
    """
    if len(ids) < 7:
        return ids
    inner = [mask_id if rng.random() < share else token for token in ids[1:-1]]
    return [ids[0], *inner, ids[-1]]
