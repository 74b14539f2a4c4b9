"""The last minute: bytes go to the five seconds in which they passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.figures import Moment
from vff_qos.core.minute import CELL_S, CELLS, Minute, heights


def moved(seconds: float, up: int, down: int = 0) -> Moment:
    return Moment(1, before=({2: 0}, {2: 5}), after=({2: up}, {2: 5 + down}), seconds=seconds)


def test_a_long_look_is_spread_over_its_cells() -> None:
    minute = Minute()
    minute.add(moved(10.0, 500, 500), 1_010.0)
    assert minute.rates(2, 1_010.0) == [0.0] * (CELLS - 2) + [800.0, 800.0]


def test_what_is_not_over_is_not_shown_yet() -> None:
    minute = Minute()
    minute.add(moved(4.0, 400), 1_014.0)
    assert sum(minute.rates(2, 1_014.0)) == 0
    minute.add(moved(2.0, 200), 1_016.0)
    assert minute.rates(2, 1_016.0)[-1] == 500 * 8 / CELL_S


def test_after_a_minute_it_is_forgotten() -> None:
    minute = Minute()
    minute.add(moved(5.0, 500), 1_000.0)
    assert minute.rates(2, 1_055.0)[0] > 0
    assert sum(minute.rates(2, 1_065.0)) == 0


def test_a_gap_is_a_gap() -> None:
    minute = Minute()
    minute.add(moved(5.0, 500), 1_000.0)
    minute.add(moved(5.0, 500), 1_020.0)
    assert minute.rates(2, 1_020.0)[-5:] == [800.0, 0.0, 0.0, 0.0, 800.0]


def test_nobody_knows_a_rate_without_two_readings() -> None:
    minute = Minute()
    minute.add(moved(0.0, 500), 1_000.0)
    assert sum(minute.rates(2, 1_005.0)) == 0


@given(st.lists(st.tuples(st.floats(0.2, 12.0), st.integers(0, 10**9)), min_size=1, max_size=40))
def test_no_byte_is_lost_or_counted_twice(looks: list[tuple[float, int]]) -> None:
    minute, now_s, total = Minute(), 1_000.0, 0
    for seconds, count in looks:
        now_s += seconds
        if now_s > 1_055.0:
            break
        total += count
        minute.add(moved(seconds, count), now_s)
    assert abs(sum(minute.rates(2, 1_060.0)) * CELL_S / 8 - total) <= 1e-6 * max(total, 1)


def test_what_an_idle_device_sends_is_no_mountain() -> None:
    assert heights([0.0, 100.0, 1_000_000.0], 10_000_000, 8) == [0, 1, 7]
    assert heights([0.0, 100.0], 10_000_000, 8) == [0, 1]
    assert heights([5.0, 10.0], 0, 8) == [4, 8]
