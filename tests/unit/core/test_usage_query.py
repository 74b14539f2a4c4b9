"""What `vff-qos usage` is asked for."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from vff_qos.core.accounts import day_of, hour_of, hour_start
from vff_qos.core.usage_query import (
    DAY,
    HOUR,
    MONTH,
    Span,
    month_start,
    parse_when,
    plan_query,
    summed_up,
)

BERLIN = ZoneInfo("Europe/Berlin")


def at(year: int, month: int, day: int = 1, hour: int = 0, minute: int = 0) -> float:
    return datetime(year, month, day, hour, minute, tzinfo=BERLIN).timestamp()


NOW = at(2026, 11, 26, 14, 20)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11", at(2026, 11)),
        ("2026-03-29", at(2026, 3, 29)),
        ("2026-03-29 14:30", at(2026, 3, 29, 14, 30)),
        ("2026-03-29T14:30", at(2026, 3, 29, 14, 30)),
        ("24h", NOW - 86_400),
        ("7d", NOW - 7 * 86_400),
    ],
)
def test_times_as_people_write_them(text: str, when: float) -> None:
    assert parse_when(text, NOW, BERLIN) == when


@pytest.mark.parametrize(
    "text",
    ["", "now", "26", "2026", "2026-13", "2026-02-30", "2026-11-26 25:00", "0000-01", "-7d", "7",
     "2026-11-26 14", "\u0662\u0660\u0662\u0666-11"],
)  # fmt: skip
def test_what_is_no_time_gets_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="; allowed: 2026-11, 2026-11-26, '2026-11-26 14:00'"):
        parse_when(text, NOW, BERLIN)


def test_the_month_begins_at_its_first_midnight() -> None:
    assert month_start(NOW, BERLIN) == at(2026, 11)


def test_whole_days_are_read_as_days_and_others_as_hours() -> None:
    month = plan_query(at(2026, 11), NOW, None, NOW, 31, BERLIN)
    assert (month.unit, month.first) == (DAY, day_of(at(2026, 11), BERLIN))
    assert (month.since_s, month.until_s) == (at(2026, 11), at(2026, 11, 27))
    part = plan_query(NOW - 7_200, NOW, None, NOW, 31, BERLIN)
    assert (part.unit, part.since_s, part.until_s) == (
        HOUR,
        at(2026, 11, 26, 12),
        at(2026, 11, 26, 15),
    )
    # Of long ago there are days alone: the whole day in which it begins.
    old = plan_query(at(2026, 9, 3, 15), at(2026, 9, 5), None, NOW, 31, BERLIN)
    assert (old.unit, old.since_s, old.until_s) == (DAY, at(2026, 9, 3), at(2026, 9, 5))
    assert plan_query(at(2026, 11, 26, 9), NOW, DAY, NOW, 31, BERLIN).since_s == at(2026, 11, 26)


def test_hours_of_long_ago_are_refused_with_the_first_there_are() -> None:
    with pytest.raises(
        ValueError, match="hours are kept for 31 days: --since '2026-10-26 15:00' or"
    ):
        plan_query(at(2026, 10, 1), NOW, HOUR, NOW, 31, BERLIN)


def test_a_time_that_ends_before_it_begins_is_refused() -> None:
    sentence = "--since is not before --until: 2026-10-25 00:00:00, 2026-10-01 00:00:00"
    with pytest.raises(ValueError, match=sentence):
        plan_query(at(2026, 10, 25), at(2026, 10, 1), None, NOW, 31, BERLIN)


def test_rows_are_summed_up_by_day_and_month() -> None:
    query = plan_query(at(2026, 10), NOW, DAY, NOW, 31, BERLIN)
    days = [(day_of(at(2026, 10, 25), BERLIN), 1, 2), (day_of(at(2026, 11, 2), BERLIN), 3, 4)]
    # The day on which summer time ends is an hour longer.
    assert summed_up(days, query, BERLIN) == [
        Span(at(2026, 10, 25), at(2026, 10, 26), 1, 2),
        Span(at(2026, 11, 2), at(2026, 11, 3), 3, 4),
    ]
    assert at(2026, 10, 26) - at(2026, 10, 25) == 25 * 3_600
    rows = [*days, (day_of(at(2026, 12, 31), BERLIN), 5, 6)]
    assert summed_up(rows, query._replace(by=MONTH), BERLIN) == [
        Span(at(2026, 10), at(2026, 11), 1, 2),
        Span(at(2026, 11), at(2026, 12), 3, 4),
        Span(at(2026, 12), at(2027, 1), 5, 6),
    ]
    assert [span[2:] for span in summed_up(rows, query._replace(by=None), BERLIN)] == [(9, 12)]


def test_hours_are_hours() -> None:
    query = plan_query(NOW - 7_200, NOW, HOUR, NOW, 31, BERLIN)
    hour = hour_of(NOW, BERLIN)
    (span,) = summed_up([(hour, 1, 2), (hour, 1, 0)], query, BERLIN)
    assert span == Span(hour_start(hour), hour_start(hour) + 3_600, 2, 2)
