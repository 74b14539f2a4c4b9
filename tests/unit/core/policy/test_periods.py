"""Days and months of quotas, and sliding windows."""

from __future__ import annotations

from array import array
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.policy.periods import BUCKETS, CELLS, Window, period
from vff_qos.core.policy.terms import FairUseRule

from .examples import START, at

# -- quotas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per", "reset", "now", "start", "end", "zone"),
    [
        ("month", 1, "2026-12-31 23:59", "2026-12-01 00:00", "2027-01-01 00:00", "Europe/Berlin"),
        ("month", 31, "2027-02-27 12:00", "2027-01-31 00:00", "2027-02-28 00:00", "Europe/Berlin"),
        ("month", 31, "2027-02-28 00:00", "2027-02-28 00:00", "2027-03-31 00:00", "Europe/Berlin"),
        ("month", 30, "2028-02-29 06:00", "2028-02-29 00:00", "2028-03-30 00:00", "Europe/Berlin"),
        ("day", 0, "2026-10-25 12:00", "2026-10-25 00:00", "2026-10-26 00:00", "Europe/Berlin"),
        ("day", 4, "2026-03-29 03:30", "2026-03-28 04:00", "2026-03-29 04:00", "Europe/Berlin"),
        # The hour from 2 to 3 is left out: the day begins when it would have.
        ("day", 2, "2026-03-29 03:00", "2026-03-29 03:00", "2026-03-30 02:00", "Europe/Berlin"),
        # The hour from 2 to 3 comes twice: the first one counts.
        ("day", 2, "2026-10-25 02:30", "2026-10-25 02:00", "2026-10-26 02:00", "Europe/Berlin"),
        # Midnight itself is left out.
        ("day", 0, "2026-09-06 12:00", "2026-09-06 01:00", "2026-09-07 00:00", "America/Santiago"),
    ],
)
def test_periods(per: str, reset: int, now: str, start: str, end: str, zone: str) -> None:
    tz = ZoneInfo(zone)
    assert period(per, reset, at(now, tz), tz) == (at(start, tz), at(end, tz))


@given(
    st.sampled_from(["Europe/Berlin", "America/Santiago", "Asia/Beirut", "Australia/Lord_Howe"]),
    st.one_of(
        st.tuples(st.just("day"), st.integers(0, 23)),
        st.tuples(st.just("month"), st.integers(1, 31)),
    ),
    st.integers(1_500_000_000, 2_100_000_000),
)
def test_periods_meet_without_gap_and_begin_at_the_reset(
    zone: str, kind: tuple[str, int], now: int
) -> None:
    tz = ZoneInfo(zone)
    start, end = period(*kind, now, tz)
    assert start <= now < end
    assert period(*kind, end, tz)[0] == end
    assert period(*kind, start - 1, tz)[1] == start
    assert period(*kind, start, tz) == (start, end)
    assert end - start <= 31 * 86_400 + 2 * 3_600
    begins = datetime.fromtimestamp(start, tz)
    if kind[0] == "month":
        following = datetime.fromtimestamp(start + 86_400 + 7_200, tz)
        assert begins.day == kind[1] or following.day <= 2
        assert begins.hour in (0, 1)


@given(
    st.lists(st.tuples(st.integers(-50, 400), st.integers(0, 10**7)), max_size=80),
    st.sampled_from([60.0, 900.0, 86_400.0]),
)
def test_a_window_never_holds_more_than_came_in_it(
    steps: list[tuple[int, int]], window_s: float
) -> None:
    rule = FairUseRule("volume", 10**6, int(window_s), "both", "slow", 60)
    window, now, came = Window(rule, array("I", bytes(4 * CELLS))), START, []
    for seconds, amount in steps:
        start, now = now, now + seconds
        window.add(min(start, now), now, amount)
        came.append((now, amount))
        total = window.total(now)
        assert total <= sum(a for _when, a in came)
        if all(step >= 0 for step, _amount in steps):
            assert total <= sum(a for when, a in came if when > now - window_s)
            surely = now - window_s * (1 - 1 / BUCKETS)
            assert total >= sum(a for when, a in came if when - 400 > surely)
