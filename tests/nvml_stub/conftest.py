"""The fixture of the stub's own tests."""

from pathlib import Path

import pytest

from . import Stub


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub.create(tmp_path, gpus=2, samples__clock="monotonic")
