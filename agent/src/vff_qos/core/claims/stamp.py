"""When was a line written?  The engine's stamp, read without knowing its time zone.

A stamp is local time of an unknown zone, and lines with any stamp may be a stranger's.  But all
zones in use differ from UTC by multiples of 15 minutes (tz database), so the stamp within its
quarter of an hour needs no zone; and that the line was written after the reader had last seen the
end of the log, and before it saw the line, needs no stamp.  Together they mostly leave one time.
No zone, no hour of daylight saving and no stranger's line moves it.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

#: All time zones are multiples of this from UTC.
QUARTER_S = 900.0
#: How exactly the difference of two clocks is known.
SLACK_S = 0.02

_SECOND = re.compile(rb"\d{4}/\d\d/\d\d \d\d:(\d\d):(\d\d)")
_SECOND_BYTES = 19
#: Of a fraction of a second, with its point.
_MOST_BYTES = 10


def written(
    stamp: bytes, since_s: float, until_s: float, epoch_offset_s: float | None
) -> tuple[float, float]:
    """Between which times a line got its ``stamp``, as CLOCK_MONOTONIC in seconds.

    It was written after ``since_s`` (may be -inf) and before ``until_s``.  ``epoch_offset_s`` is
    the time since the epoch less CLOCK_MONOTONIC; None while the clock was being set, when stamps
    say nothing.  So it is when no time within the window fits: then the window alone counts.
    Where several fit, the answer reaches from the earliest to the latest.
    """
    parsed = _within_quarter(stamp)
    if parsed is None or epoch_offset_s is None:
        return since_s, until_s
    start_s, width_s = parsed
    base_s = start_s - epoch_offset_s
    latest = math.floor((until_s + SLACK_S - base_s) / QUARTER_S)
    end_s = min(until_s, base_s + latest * QUARTER_S + width_s + SLACK_S)
    if since_s == -math.inf:
        return since_s, end_s
    earliest = math.ceil((since_s - SLACK_S - width_s - base_s) / QUARTER_S)
    if earliest > latest:
        return since_s, until_s
    return max(since_s, base_s + earliest * QUARTER_S - SLACK_S), end_s


def _within_quarter(stamp: bytes) -> tuple[float, float] | None:
    """Seconds since the quarter of an hour began, and for how long they hold."""
    whole_s = _whole_seconds(stamp[:_SECOND_BYTES])
    fraction = stamp[_SECOND_BYTES:]
    if whole_s is None:
        return None
    if not fraction:
        return whole_s, 1.0
    if fraction[:1] != b"." or not fraction[1:].isdigit() or len(fraction) > _MOST_BYTES:
        return None
    return whole_s + float(fraction), 10.0 ** (1 - len(fraction))


# Stamps with microseconds never come again; the seconds of a burst are few.
@lru_cache(64)
def _whole_seconds(second: bytes) -> float | None:
    found = _SECOND.fullmatch(second)
    if found is None:
        return None
    minutes, seconds = int(found[1]), int(found[2])
    if minutes > 59 or seconds > 60:
        return None
    return float(minutes % 15 * 60 + seconds)
