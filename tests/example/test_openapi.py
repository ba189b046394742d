"""Schemathesis holds the service to its own OpenAPI document: bounded examples against loopback."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis: Any = pytest.importorskip("schemathesis", reason="pip install -r tests/requirements-service.txt")

from .conftest import FakeClassifier, served  # noqa: E402


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(FakeClassifier()) as address:
        yield address


@pytest.fixture(scope="module")
def document(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


OPERATIONS = [("/predict", "GET"), ("/predict", "POST"), ("/healthz", "GET"), ("/readyz", "GET"), ("/figures", "GET")]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [*((*operation, "POSITIVE") for operation in OPERATIONS), *((*taking, "NEGATIVE") for taking in OPERATIONS[:2])],
)
def test_the_service_keeps_to_its_schema(document: Any, path: str, method: str, mode: str) -> None:
    """Positive: what the document allows is answered as it says. Negative: what it forbids is refused."""
    cases = document[path][method].as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @given(case=cases)
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def keeps(case: Any) -> None:
        case.call_and_validate()

    keeps()


def test_the_schema_has_every_public_operation(address: str) -> None:
    with urllib.request.urlopen(f"{address}/openapi.json", timeout=20) as answer:
        paths = json.load(answer)["paths"]
    assert {(path, method.upper()) for path, methods in paths.items() for method in methods} == set(OPERATIONS)
