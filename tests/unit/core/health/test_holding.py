"""What holds a user: one answer, the most telling."""

from __future__ import annotations

import pytest

from vff_qos.core.health.holding import KINDS, Held, Passing, holds

IDLE_NODE, FULL_NODE = Passing(0, 1_000, 0), Passing(950, 1_000, 0)


@pytest.mark.parametrize(
    ("user", "node", "penalty", "restricted", "kind"),
    [
        (Passing(95, 100, 0), IDLE_NODE, "", False, "limit"),
        (Passing(95, 100, 0), FULL_NODE, "", False, "limit"),
        (Passing(95, 100, 0), IDLE_NODE, "20GB", False, "penalty"),
        (Passing(50, 100, 0), IDLE_NODE, "20GB", False, ""),
        (Passing(50, 100, 0), FULL_NODE, "", True, "node"),
        (Passing(0, 100, 0), FULL_NODE, "", False, ""),
        (Passing(950, 1_000, 0), FULL_NODE, "", False, "node"),  # no limit but the node's
        (Passing(50, 100, 0), IDLE_NODE, "", True, "restricted"),
        (Passing(50, 100, 9), IDLE_NODE, "", False, ""),
    ],
)
def test_what_holds(
    user: Passing, node: Passing, penalty: str, restricted: bool, kind: str
) -> None:
    held = holds(user, node, penalty, restricted)
    assert held.kind == kind
    assert held.kind in KINDS and held.text


def test_the_sentences() -> None:
    def said(user: Passing, node: Passing, penalty: str = "") -> str:
        return holds(user, node, penalty).text

    assert said(Passing(95, 100, 0), IDLE_NODE) == "their own limit"
    assert holds(Passing(95, 100, 0), IDLE_NODE, "20GB") == Held("penalty", "a penalty (20GB)")
    assert said(Passing(9, 100, 0), FULL_NODE) == "the node is full: the users share it"
    assert said(Passing(0, 100, 0), FULL_NODE) == "nothing: they are idle"
    assert said(Passing(9, 100, 0), IDLE_NODE) == "nothing: they use what they want"


def test_delay_is_what_waits_by_the_rate() -> None:
    assert Passing(8_000_000, 10_000_000, 50_000).delay_s == 0.05
    assert Passing(0, 8_000_000, 1_000).delay_s == 0.001
    assert Passing(0, 8_000_000, 0).delay_s == 0.0
