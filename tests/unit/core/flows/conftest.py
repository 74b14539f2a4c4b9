from __future__ import annotations

import pytest
from kernel_events import Kernel


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()
