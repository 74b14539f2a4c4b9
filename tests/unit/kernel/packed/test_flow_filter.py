"""The socket filter of the flow events."""

from __future__ import annotations

import pytest

from vff_qos.core.flows.ends import ServiceEnds
from vff_qos.kernel.packed.flow_filter import MAX_INSTRUCTIONS, flow_filter


@pytest.mark.parametrize(
    ("ranges", "addresses", "fits"), [(1, 1, True), (900, 8, True), (2000, 2, False)]
)
def test_a_filter_is_as_long_as_the_kernel_allows(ranges: int, addresses: int, fits: bool) -> None:
    ports = tuple((10 + 20 * n, 13 + 20 * n) for n in range(ranges))
    program = flow_filter(ServiceEnds(ports, [bytes((10, 0, 0, n)) for n in range(addresses)]))
    assert (program is not None) is fits
    assert program is None or len(program) // 8 <= MAX_INSTRUCTIONS
