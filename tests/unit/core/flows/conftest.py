from __future__ import annotations

import pytest

from unit.core.flows.kernel_events import Kernel


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()
