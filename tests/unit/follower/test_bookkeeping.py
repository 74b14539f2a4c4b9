"""When counters are read for accounts: often while it is cheap, rarely while it is dear."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from vff_qos.core.settings import Settings
from vff_qos.follower.bookkeeping import PACE, Bookkeeping
from vff_qos.follower.registry import Registry
from vff_qos.journal import Journal
from vff_qos.state import State

NOON = 1_790_000_000 // 3_600 * 3_600
HOUR_S = 3_600


@pytest.mark.parametrize("later_s", [0.0, 0.02, 1.0])
def test_no_reading_is_made_that_is_not_booked(tmp_path: Path, later_s: float) -> None:
    """The first ones are cheap; later ones cost so much, so that they are due less often."""
    now_s = 0.0
    owners = SimpleNamespace(
        left=({}, {}), names=SimpleNamespace(people={}), owner=lambda _minor: None
    )
    books = Bookkeeping(
        Settings(wan="wan0"), State(str(tmp_path)), cast(Registry, owners), Journal(),
        lambda: NOON + now_s,
    )  # fmt: skip
    read: tuple[list[float], list[float]] = ([], [])
    while now_s < HOUR_S - 1:
        direction = books.due(now_s)
        if direction is not None:
            cost_s = later_s if now_s > PACE.least_s else 0.0
            books.book(direction, {}, now_s, time.thread_time() - cost_s)
            read[direction].append(now_s)
        now_s += 1.0
    for times in read:
        gaps = [after - before for before, after in pairwise(times)]
        assert min(gaps) >= PACE.least_s and max(gaps) <= PACE.most_s + 2
        # The first three of each still go by what the others cost.
        assert min(gaps[3:]) >= PACE.gap_s(2 * later_s)
