"""Mounting on a framework's app and asking it, in this process."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import gpuscale
from gpuscale.publish.publication import Publication

Handles = list[gpuscale.Metrics[Any]]


def mount(app: Any, opened: Handles, **options: Any) -> gpuscale.Metrics[Any]:
    options = {"port": 0, "gpu": "none", "address": "127.0.0.1", "registry": CollectorRegistry(), **options}
    handle = gpuscale.instrument(app, **options)
    opened.append(handle)
    return handle


def counts(publication: Publication) -> dict[tuple[str, str, str], float]:
    """Ended requests by method, route and status; without the overflow's, which nothing used."""
    return {labels: number for labels, number in publication.totals().requests.items() if number}


def counted(handle: gpuscale.Metrics[Any]) -> dict[tuple[str, str, str], float]:
    """The same of an app that was instrumented."""
    return counts(handle._publication)


def ask(app: Any, *paths: str) -> None:
    """GET each path in turn, over ASGI in this process."""

    async def all_of_them() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in paths:
                await client.get(path)

    asyncio.run(all_of_them())


def scrape(url: str) -> dict[str, Any]:
    """Families of a metrics page by name."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}
