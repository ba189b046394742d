"""Handles that tests open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.middleware.mounted import Handles


@pytest.fixture
def opened() -> Iterator[Handles]:
    """Handles that are closed at the end."""
    handles: Handles = []
    yield handles
    for handle in handles:
        handle.close()
