"""Handles that tests open, and a publication that needs no closing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpuscale.publish.publication import Publication
from gpuscale.settings import Settings
from tests.middleware.mounted import Handles


@pytest.fixture
def opened() -> Iterator[Handles]:
    """Handles that are closed at the end."""
    handles: Handles = []
    yield handles
    for handle in handles:
        handle.close()


@pytest.fixture(params=[False, True], ids=["alone", "workers sharing"])
def publication(request: pytest.FixtureRequest) -> Iterator[Publication]:
    """Numbers without an endpoint or a GPU."""
    made = Publication(Settings.create({}, port=0, gpu="none"))
    made.running = True
    made.accounting.sharing = request.param
    yield made
    assert made.totals().in_flight == 0
