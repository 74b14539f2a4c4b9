"""Times and amounts of data as people write them."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"([0-9]{1,9}) ?([a-z]+)")
_SPANS = re.compile(r"[0-9]{1,9} ?[a-z]+(?: ?[0-9]{1,9} ?[a-z]+)*")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGT]i?)B")
_PREFIX = {"k": 1, "m": 2, "g": 3, "t": 4}

DURATIONS = "allowed: such as 90s, 15min, 1h 30min or 7d"
SIZES = "allowed: such as 500MB, 20GB, 1.5TB or 10GiB"


def parse_duration(value: object) -> int:
    """Seconds of ``value``, text such as ``1h 30min``; units s, min, h, d, w.

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    text = value.strip() if isinstance(value, str) else ""
    seconds = 0
    if not _SPANS.fullmatch(text):
        raise ValueError(f"{value!r} is not a time; {DURATIONS}")
    for number, unit in _SPAN.findall(text):
        if unit not in _SECONDS:
            raise ValueError(f"{value!r}: unknown unit {unit!r}; {DURATIONS}")
        seconds += int(number) * _SECONDS[unit]
    return seconds


def format_duration(seconds: int) -> str:
    """The same in as few words as are exact: ``1h 30min``, ``24h``, ``7d``."""
    if seconds > 86_400 and seconds % 86_400 == 0:
        return f"{seconds // 86_400}d"
    words = []
    for unit, size in (("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= size:
            words.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(words) or "0s"


def parse_volume(value: object) -> int:
    """Bytes of ``value``, text such as ``20GB`` (decimal) or ``10GiB`` (binary).

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{value!r} is not an amount of data; {SIZES}")
    base = 1_024 if found[2].endswith("i") else 1_000
    factor: int = base ** _PREFIX[found[2][0].lower()]
    return round(float(found[1]) * factor)


def format_volume(size_bytes: int) -> str:
    """A size for people, to three digits: ``20 GB``, ``1.53 MB``, ``999 B``."""
    number, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1_000, larger
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"
