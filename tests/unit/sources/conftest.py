"""What tests of sources share."""

from __future__ import annotations

from pathlib import Path

import pytest

from .access_log import Watch


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"
