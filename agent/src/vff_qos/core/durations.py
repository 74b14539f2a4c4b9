"""Spans of time as people write them: ``2h``, ``90min``, ``1d 12h``."""

from __future__ import annotations

import re

MAX_S = 366 * 86_400

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"([0-9]{1,9}) ?(s|sec|m|min|h|d|w)(?: |$|(?=[0-9]))")
_ALLOWED = "allowed: 1s to 366d, as 90s, 30min, 2h, 1d, 1w or 1h 30min"


def parse_duration(text: str) -> int:
    """Seconds; ValueError with one sentence: what is wrong and what is allowed."""
    seconds, at = 0, 0
    while found := _PART.match(text, at):
        seconds += int(found[1]) * _UNITS[found[2]]
        at = found.end()
    if at != len(text) or not text:
        raise ValueError(f"{text!r} is not a time; {_ALLOWED}")
    if not 1 <= seconds <= MAX_S:
        raise ValueError(f"{text!r} is out of range; {_ALLOWED}")
    return seconds


def format_duration(seconds: float) -> str:
    """The two largest units of a span, rounded down: ``1h 59min``."""
    left, parts = int(max(seconds, 0)), []
    for unit in ("d", "h", "min", "s"):
        count, left = divmod(left, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return " ".join(parts) or "0s"
