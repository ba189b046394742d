"""Logs for collectors: each record one line on stderr, as logfmt or JSON."""

from __future__ import annotations

import logging
import re
import sys
import time

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")

_BARE = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def configure(level: str, form: str) -> None:
    """Send all of this process's records to stderr in ``form``; for the command line, never for a library."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else LogfmtFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, str]:
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields = {
        "ts": f"{when}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": record.getMessage(),
    }
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = repr(record.exc_info[1])
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


class LogfmtFormatter(logging.Formatter):
    """``ts=… level=info logger=gpuscale.gpu msg="reading 1 GPU"``; line breaks are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        import json

        return json.dumps(_fields(record), ensure_ascii=False)


def _quoted(value: str) -> str:
    if _BARE.match(value):
        return value
    escaped = "".join(_ESCAPES.get(char, char if char.isprintable() else f"\\u{ord(char):04x}") for char in value)
    return f'"{escaped}"'
