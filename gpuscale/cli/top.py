"""Watch one or several metrics endpoints: GPU bars, requests in flight, rates.

    gpuscale top                                        # http://127.0.0.1:9445/metrics
    gpuscale top 10.0.0.7:9445 10.0.0.8:9445
    gpuscale top --once --json

Utilisation and rates are of the counters between two looks. What an endpoint does not tell is shown as a dash.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from gpuscale.errors import ConfigurationError, MissingExtraError
from gpuscale.settings import DEFAULT_PORT

if TYPE_CHECKING:
    from gpuscale.cli.top_scrape import Scraper

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}/metrics"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("urls", nargs="*", metavar="URL", help=f"or HOST:PORT (default {DEFAULT_URL})")
    parser.add_argument("--interval", metavar="SECONDS", default="2", help="between looks (default 2)")
    parser.add_argument("--once", action="store_true", help="look twice, print once and end; 1 if none answers")
    parser.add_argument("--json", action="store_true", help="print JSON, one line a look")
    parser.add_argument("--token-file", metavar="FILE", help="send the bearer token in this file")
    parser.add_argument("--ca-file", metavar="FILE", help="trust these certificates (PEM) for https")


def run(options: argparse.Namespace) -> int:
    """Show until Ctrl-C, or once."""
    from gpuscale.cli import top_scrape

    interval = _interval(options.interval)
    scraper = top_scrape.Scraper(
        [endpoint_url(url) for url in options.urls or [DEFAULT_URL]],
        token_file=options.token_file,
        ca_file=options.ca_file,
    )
    try:
        if options.json:
            return _print_json(scraper, interval, once=options.once)
        try:
            import rich  # noqa: F401
        except ImportError:
            raise MissingExtraError("rich", "cli") from None
        from gpuscale.cli import top_view

        return top_view.show(scraper, interval, once=options.once)
    except KeyboardInterrupt:
        return 0


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise ConfigurationError(f"--interval must be a number of seconds from 0.1 to 3600, not {text!r}")
    return seconds


def endpoint_url(text: str) -> str:
    """``HOST:PORT`` → ``http://HOST:PORT/metrics``; a URL without a path gets that path. Raises ConfigurationError."""
    from urllib.parse import urlsplit

    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(f"{text!r} must be a URL such as {DEFAULT_URL}, or HOST:PORT")
    if parts.port is None and "://" not in text:
        parts = parts._replace(netloc=f"{parts.netloc}:{DEFAULT_PORT}")
    return parts._replace(path=parts.path if parts.path.strip("/") else "/metrics").geturl()


def _print_json(scraper: Scraper, interval: float, *, once: bool) -> int:
    scraper.look()
    while True:
        time.sleep(interval)
        views = scraper.look()
        print(json.dumps([view.to_json() for view in views]), flush=True)
        if once:
            return 0 if any(view.error is None for view in views) else 1
