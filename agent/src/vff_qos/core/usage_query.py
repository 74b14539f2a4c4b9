"""What `vff-qos usage` is asked for: times as people write them, and the rows that answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, tzinfo
from typing import NamedTuple

from .accounts import day_of, day_start, hour_of, hour_start
from .policy.periods import moment
from .units import parse_duration

HOUR, DAY, MONTH = "hour", "day", "month"
_HOUR_S = 3_600.0
_DATE = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2})(?:[ T](\d{2}):(\d{2}))?)?", re.ASCII)
_TIMES = "allowed: 2026-11, 2026-11-26, '2026-11-26 14:00', or a span such as 24h or 7d ago"


def parse_when(text: str, now_s: float, zone: tzinfo | None = None) -> float:
    """Seconds since the epoch of a local time, or of so long ago.

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    if found := _DATE.fullmatch(text):
        year, month, day, hour, minute = (int(part or 0) for part in found.groups())
        try:
            at = datetime(year, month, day or 1, hour, minute, tzinfo=zone)
            return at.timestamp()
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{text!r} is no such day or hour; {_TIMES}") from error
    try:
        return now_s - parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time; {_TIMES}") from error


def month_start(now_s: float, zone: tzinfo | None = None) -> float:
    """When the local month began."""
    today = datetime.fromtimestamp(now_s, zone).date()
    return moment(today.replace(day=1), 0, zone)


class Query(NamedTuple):
    """Rows of ``unit`` (`HOUR` or `DAY`) from ``first`` to before ``end``, summed up by ``by``.

    ``since_s`` and ``until_s`` are the times that they really cover.
    """

    unit: str
    first: int
    end: int
    by: str | None
    since_s: float
    until_s: float


def plan_query(
    since_s: float,
    until_s: float,
    by: str | None,
    now_s: float,
    hourly_days: int,
    zone: tzinfo | None = None,
) -> Query:
    """Which rows answer; whole hours or days around what was asked for.

    Raises ValueError with one sentence.
    """
    if not since_s < until_s:
        times = (datetime.fromtimestamp(at_s, zone) for at_s in (since_s, until_s))
        both = ", ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in times)
        raise ValueError(f"--since is not before --until: {both}")
    oldest = hour_of(now_s - hourly_days * 86_400, zone)
    starts_a_day, ends_a_day = (
        at_s == day_start(day_of(at_s, zone), zone) for at_s in (since_s, until_s)
    )
    whole_days = starts_a_day and (ends_a_day or until_s >= now_s)
    has_hours = hour_of(since_s, zone) >= oldest
    if by == HOUR and not has_hours:
        at = datetime.fromtimestamp(hour_start(oldest) + _HOUR_S, zone)
        raise ValueError(
            f"hours are kept for {hourly_days} days: --since {at:'%Y-%m-%d %H:00'} or later, "
            "or --by day"
        )
    if by == HOUR or (not whole_days and has_hours and by is None):
        first, end = hour_of(since_s, zone), hour_of(until_s - 1e-3, zone) + 1
        until = hour_start(hour_of(until_s - 1e-3, zone)) + _HOUR_S
        return Query(HOUR, first, end, by, hour_start(first), until)
    first, end = day_of(since_s, zone), day_of(until_s - 1e-3, zone) + 1
    return Query(DAY, first, end, by, day_start(first, zone), day_start(end, zone))


class Span(NamedTuple):
    """A time and what somebody moved within it, in bytes.  Times in seconds since the epoch."""

    since: float
    until: float
    upload_bytes: int
    download_bytes: int


def summed_up(
    rows: Iterable[tuple[int, int, int]], query: Query, zone: tzinfo | None = None
) -> list[Span]:
    """Rows (number of the hour or day, upload, download) of one account as they are asked for."""
    sums: dict[tuple[float, float], list[int]] = {}
    for number, upload, download in rows:
        if query.by is None:
            span = query.since_s, query.until_s
        elif query.by == HOUR:
            span = hour_start(number), hour_start(number) + _HOUR_S
        elif query.by == DAY:
            span = day_start(number, zone), day_start(number + 1, zone)
        else:
            day = date.fromordinal(number)
            later = date(day.year + day.month // 12, day.month % 12 + 1, 1)
            span = moment(day.replace(day=1), 0, zone), moment(later, 0, zone)
        both = sums.setdefault(span, [0, 0])
        both[0] += upload
        both[1] += download
    return [Span(*span, *both) for span, both in sorted(sums.items())]
