"""Which of two forms a client wants: text or JSON, from its ``Accept`` header (RFC 9110, 12.5.1)."""

from __future__ import annotations

from functools import lru_cache

TEXT_TYPES = ("text/html", "text/plain")
"""What answers and problems are as text; the second counts where a client does not speak of the first."""
JSON_TYPE = "application/json"


@lru_cache(maxsize=256)
def prefers_json(accept: str, default: bool = False) -> bool:
    """Whether JSON is wanted rather than text; ``default`` where the client wants both or neither alike.

    A client that accepts neither gets the default too, as the RFC allows, rather than a 406 it cannot read.
    """
    ranges = _ranges(accept)
    if not ranges:
        return default
    as_json = _quality(ranges, JSON_TYPE) or 0.0
    html, plain = (_quality(ranges, media_type) for media_type in TEXT_TYPES)
    as_text = html if html is not None else plain or 0.0
    return default if as_json == as_text else as_json > as_text


def _ranges(accept: str) -> dict[str, float]:
    """Media ranges in lower case with their weights; what is malformed is left out."""
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        kind, slash, subtype = media_range.partition("/")
        if not kind or not slash or not subtype:
            continue
        weight: float | None = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                weight = _weight(value.strip())
        if weight is not None:
            ranges[media_range] = max(weight, ranges.get(media_range, 0.0))
    return ranges


def _weight(value: str) -> float | None:
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if 0 <= weight <= 1 else None


def _quality(ranges: dict[str, float], media_type: str) -> float | None:
    """The weight of the most specific range that matches; None where none does."""
    kind = media_type.partition("/")[0]
    for media_range in (media_type, f"{kind}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return None
