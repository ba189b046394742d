"""The two or three pages of HTTP/1.1 (RFC 9110, 9112) that a metrics endpoint speaks: request heads, answers.

No body is ever read: whoever sends one is answered and the connection is closed.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

MAX_HEAD_BYTES = 8192
MAX_HEADERS = 64
GZIP_MINIMUM = 512
"""Bytes under which compressing costs more than it saves."""

REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 414: "URI Too Long", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
PLAIN = "text/plain; charset=utf-8"

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_TARGET = re.compile(rb"[\x21-\x7e]+\Z")
_VERSION = re.compile(rb"HTTP/(\d)\.(\d)\Z")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Response:
    """What a handler answers; ``body`` is not compressed."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Request:
    """A request's head. ``path`` is without query and without a trailing slash (but for ``/``)."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case; repeated ones joined by a comma."""
    keep_alive: bool


class RefusedError(Exception):
    """This request is answered with ``status`` and the connection closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def take_head(buffer: bytearray, seen: int) -> bytes | None:
    """Cut one request's head off the buffer; None while it is not complete.

    ``seen`` bytes were searched before. Raises RefusedError (414, 431) once it is longer than MAX_HEAD_BYTES.
    """
    if buffer.startswith((b"\r", b"\n")):  # RFC 9112 2.2: empty lines before the request line are skipped
        buffer[:] = buffer.lstrip(b"\r\n")
        seen = 0
    found = _END_OF_HEAD.search(buffer, max(0, seen - 3))
    if found and found.end() <= MAX_HEAD_BYTES:
        head = bytes(buffer[: found.start()])
        del buffer[: found.end()]
        return head
    if len(buffer) >= MAX_HEAD_BYTES or found:
        if buffer.find(b"\n", 0, MAX_HEAD_BYTES) < 0:
            raise RefusedError(414, f"the request line is longer than {MAX_HEAD_BYTES} bytes")
        raise RefusedError(431, f"the request's headers are longer than {MAX_HEAD_BYTES} bytes")
    return None


def parse_head(head: bytes) -> Request:
    """A request from its head. Raises RefusedError (400, 431, 505) for what is not HTTP/1.x or has a body."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    words = lines[0].split(b" ")
    version = _VERSION.match(words[-1])
    if len(words) != 3 or not version or not _TOKEN.match(words[0]) or not _TARGET.match(words[1]):
        raise RefusedError(400, "this is not an HTTP request line")
    if version[1] != b"1":
        raise RefusedError(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    headers = _headers(lines[1:])
    minor = version[2]
    if minor != b"0" and "host" not in headers:
        raise RefusedError(400, "the header Host is missing")
    if "transfer-encoding" in headers or headers.get("content-length", "0").strip("0"):
        if words[0] in (b"GET", b"HEAD"):
            raise RefusedError(400, "a request here has no body")
        keep_alive = False
    else:
        options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
        keep_alive = "close" not in options and (minor != b"0" or "keep-alive" in options)
    return Request(words[0].decode("ascii"), _path(words[1].decode("ascii")), headers, keep_alive)


def _headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise RefusedError(431, f"more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not _TOKEN.match(raw_name) or b"\0" in raw_value or b"\r" in raw_value:
            raise RefusedError(400, "a header line is not of the form Name: value")
        name, value = raw_name.decode("ascii").lower(), raw_value.strip(b" \t").decode("latin-1")
        if name in headers:
            if name in ("host", "content-length"):
                raise RefusedError(400, f"the header {name} comes twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _path(target: str) -> str:
    if not target.startswith("/"):  # the absolute form, which a proxy's client sends
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.partition("?")[0].rstrip("/") or "/"


def accepts_gzip(headers: Mapping[str, str]) -> bool:
    """Whether Accept-Encoding names gzip with a weight above 0."""
    for option in headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = option.partition(";")
        if coding.strip() in ("gzip", "x-gzip"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def to_wire(
    response: Response,
    *,
    head_only: bool,
    keep_alive: bool,
    gzip: bool,
    extra: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """The bytes of an answer; with ``head_only`` (HEAD) without its body."""
    body = response.body
    lines = [
        f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Unknown')}",
        f"Date: {_date(time.time())}",
        f"Content-Type: {response.content_type}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
    ]
    if len(body) >= GZIP_MINIMUM:
        lines.append("Vary: Accept-Encoding")
        if gzip:
            # Level 1: of what level 9 saves it saves nine tenths in a quarter of the time.
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            body = packer.compress(body) + packer.flush()
            lines.append("Content-Encoding: gzip")
    lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in extra]
    if not keep_alive:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + body


def _date(now: float) -> str:
    """RFC 9110 5.6.7, by hand: strftime follows the locale, and importing email for it costs a megabyte."""
    when = time.gmtime(now)
    day, month = _DAYS[when.tm_wday], _MONTHS[when.tm_mon - 1]
    clock = f"{when.tm_hour:02d}:{when.tm_min:02d}:{when.tm_sec:02d}"
    return f"{day}, {when.tm_mday:02d} {month} {when.tm_year} {clock} GMT"


def index(paths: tuple[str, ...]) -> Response:
    """The page at ``/``: a link to each path."""
    links = "".join(f'<li><a href="{escape(path)}">{escape(path)}</a></li>' for path in paths)
    page = f'<!doctype html><html lang="en"><title>gpuscale</title><h1>gpuscale</h1><ul>{links}</ul></html>\n'
    return Response(200, "text/html; charset=utf-8", page.encode())
