"""YAML for people: keys in the order they were written, comments beside the values that need a reason.

PyYAML keeps no comments, and a manifest without its reasons gets "simplified" by the next reader. Only what our
manifests hold can be written: mappings with string keys, sequences, strings, numbers, booleans and null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Manifest = dict[str, Any]

# A word that every YAML reader takes for a string: it begins with a letter and has no character of YAML's own.
# `on`, `yes`, `null` and numbers such as 1e3 or 0x1f are words too, for YAML 1.1; they get quotes below.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./()-]*(?: [A-Za-z0-9_./()-]+)*\Z")
_RESERVED = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|nan|inf)\Z")


# What JSON writes as it is, or as two halves, and YAML does not read: anything that is not printable ASCII.
_QUOTED_OTHERWISE = re.compile(r"[^ -~]")


class Because(NamedTuple):
    """A value with its reason, which becomes the comment above it."""

    reason: str
    value: Any


def plain(value: Any) -> Any:
    """The same value without the comments, as a YAML reader will see it."""
    if isinstance(value, Because):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def documents(manifests: Iterable[Any], header: str = "") -> str:
    """Several manifests as one YAML stream, under a header of comment lines."""
    text = "---\n".join("\n".join(_lines(manifest)) + "\n" for manifest in manifests)
    return "".join(f"# {line}\n" if line else "#\n" for line in header.splitlines()) + text


def _lines(value: Any) -> Iterator[str]:
    """The lines of a value that begins on a line of its own."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _entry(f"{_scalar(key)}:", item)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for item in value:
            yield from _item(item)
    else:
        yield _scalar(value)


def _entry(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Because):
        yield from (f"# {line}" for line in value.reason.splitlines())
        value = value.value
    if isinstance(value, str) and _is_block(value):
        yield f"{key} |" + ("" if value.endswith("\n") else "-")
        yield from (f"  {line}" if line else "" for line in value.removesuffix("\n").split("\n"))
    elif isinstance(value, (Mapping, list, tuple)) and value:
        yield key
        yield from (f"  {line}" if line else "" for line in _lines(value))
    else:
        yield f"{key} {_scalar(value)}"


def _item(value: Any) -> Iterator[str]:
    if isinstance(value, Because):
        yield from (f"# {line}" for line in value.reason.splitlines())
        value = value.value
    mark = "- "
    for line in _lines(value):
        # A comment may not stand between the dash and the first key: it goes above.
        if mark == "- " and line.startswith("#"):
            yield line
            continue
        yield f"{mark}{line}" if line else ""
        mark = "  "


def _is_block(text: str) -> bool:
    """Whether YAML's literal style reads back exactly this text."""
    body = text.removesuffix("\n")
    return (
        "\n" in body
        and body.isprintable() is False
        and all(character == "\n" or character.isprintable() for character in body)
        and not body.startswith((" ", "\n"))
        and not body.endswith("\n")
        and not any(line != line.rstrip() for line in body.split("\n"))
    )


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.match(value) and not _RESERVED.match(value):
            return value
        return _QUOTED_OTHERWISE.sub(lambda found: f"\\U{ord(found[0]):08X}", json.dumps(value, ensure_ascii=False))
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (Mapping, list, tuple)):
        return "{}" if isinstance(value, Mapping) else "[]"
    raise TypeError(f"no YAML for {type(value).__name__}")
