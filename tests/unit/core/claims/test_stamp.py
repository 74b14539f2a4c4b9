"""When a line was written, whatever zone its clock is in."""

from __future__ import annotations

import math
import time

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.stamp import QUARTER_S, SLACK_S, written

ZONES = st.integers(-48, 56).map(lambda quarters: quarters * QUARTER_S)


def stamp(epoch_s: float, zone_s: float = 0.0, digits: int = 6) -> bytes:
    whole = math.floor(epoch_s)
    text = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(whole + zone_s))
    return (text + f".{int((epoch_s - whole) * 1e6):06d}" * bool(digits)).encode()


@given(at=st.floats(1e5, 2e5), before=st.floats(0, 440), after=st.floats(0, 440), zone=ZONES,
       digits=st.sampled_from([0, 6]), offset=st.floats(1.7e9, 1.8e9))  # fmt: skip
def test_the_time_of_a_line_is_found_in_every_zone(
    at: float, before: float, after: float, zone: float, digits: int, offset: float
) -> None:
    since, until = written(stamp(at + offset, zone, digits), at - before, at + after, offset)
    assert since - 1e-5 <= at <= until + 1e-5
    assert until - since <= (0 if digits else 1) + 2 * SLACK_S + 1e-4


@given(forged=st.floats(1.7e9, 1.8e9), since=st.floats(0, 1e5), length=st.floats(0, 890))
def test_no_stamp_leaves_the_window(forged: float, since: float, length: float) -> None:
    got = written(stamp(forged), since, since + length, 1.75e9)
    assert since <= got[0] <= got[1] <= since + length


@given(at=st.floats(1e5, 2e5), before=st.floats(900, 90_000), after=st.floats(900, 90_000))
def test_a_long_window_reaches_from_the_first_to_the_last_that_fits(
    at: float, before: float, after: float
) -> None:
    since, until = written(stamp(at + 1.75e9), at - before, at + after, 1.75e9)
    assert since <= at <= until
    assert since - (at - before) <= QUARTER_S
    assert at + after - until <= QUARTER_S


def test_where_stamps_say_nothing_the_window_counts() -> None:
    for text in (b"", b"2026/11/20", b"2026/11/20 15:99:00", b"2026/11/20 15:48:00.x"):
        assert written(text, 5.0, 9.0, 0.0) == (5.0, 9.0)
    assert written(stamp(7.5), 5.0, 9.0, None) == (5.0, 9.0)
    # The clock stands elsewhere than it did: nothing in the window fits.
    assert written(stamp(107.5), 5.0, 9.0, 0.0) == (5.0, 9.0)


def test_an_unknown_beginning_stays_unknown() -> None:
    assert written(stamp(7.5), -math.inf, 9.0, 0.0) == (-math.inf, 7.5 + 1e-6 + SLACK_S)
