"""Amounts of data as people write them; decimal, as traffic is sold (rates.py has tc's sizes)."""

from __future__ import annotations

import re

_VOLUME = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGT]i?)B")
_PREFIX = {"k": 1, "m": 2, "g": 3, "t": 4}
_ALLOWED = "allowed: such as 500MB, 20GB, 1.5TB or 10GiB"


def parse_volume(value: object) -> int:
    """Bytes of ``value``, text such as ``20GB`` (decimal) or ``10GiB`` (binary).

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    found = _VOLUME.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{value!r} is not an amount of data; {_ALLOWED}")
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
