"""How seldom something costly is done."""

from __future__ import annotations

import pytest

from vff_qos.core.pace import Pace


@pytest.mark.parametrize(
    ("cost_s", "gap_s"), [(0.0, 30.0), (0.02, 30.0), (0.1, 100.0), (9.0, 300.0)]
)
def test_a_share_of_a_core_within_bounds(cost_s: float, gap_s: float) -> None:
    assert Pace(share=1 / 1_000, least_s=30.0, most_s=300.0).gap_s(cost_s) == pytest.approx(gap_s)


def test_without_an_upper_bound() -> None:
    assert Pace(share=0.5, least_s=1.0).gap_s(1e6) == 2e6
