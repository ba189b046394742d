"""Which headers a proxy passes on (RFC 9110, 7.6) and what it adds."""

from __future__ import annotations

from collections.abc import Iterable

Header = tuple[bytes, bytes]

_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))


def _passed_on(headers: Iterable[Header]) -> tuple[list[Header], set[bytes]]:
    """Without those that concern one connection; and what ``Connection`` listed."""
    headers = list(headers)
    listed: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            listed.update(token.strip() for token in value.lower().split(b","))
    dropped = _HOP_BY_HOP | listed
    has_encoding = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    if has_encoding:
        dropped = dropped | {b"content-length"}  # RFC 9112, 6.1: two lengths in one message are a smuggler's
    return [(name, value) for name, value in headers if name.lower() not in dropped], listed


def _upgrade(headers: Iterable[Header], listed: set[bytes]) -> list[Header]:
    if b"upgrade" not in listed:
        return []
    return [
        (b"Connection", b"Upgrade"),
        *((name, value) for name, value in headers if name.lower() == b"upgrade"),
    ]


def for_app(headers: list[Header], client: bytes, authority: bytes) -> list[Header]:
    """A request's headers as the app gets them, with the client's address in ``X-Forwarded-For``."""
    kept, listed = _passed_on(headers)
    kept += _upgrade(headers, listed)
    forwarded = [value for name, value in kept if name.lower() == b"x-forwarded-for"]
    kept = [(name, value) for name, value in kept if name.lower() != b"x-forwarded-for"]
    kept.append((b"X-Forwarded-For", b", ".join([*forwarded, client])))
    if not any(name.lower() == b"host" for name, _ in kept):
        kept.append((b"Host", authority))  # an HTTP/1.0 client's, which may lack it
    return kept


def for_client(headers: list[Header], *, switches: bool, closes: bool) -> list[Header]:
    """An answer's headers as the client gets them."""
    kept, listed = _passed_on(headers)
    if switches:
        kept += _upgrade(headers, listed | {b"upgrade"})
    elif closes:
        kept.append((b"Connection", b"close"))
    return kept
