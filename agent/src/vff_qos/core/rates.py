"""Rates and sizes as people write them, to and from bits per second and bytes.

Two families of units are understood: those of tc(8) (``bit``, ``kbit``, ``mbit``, ``gbit``,
``tbit``, decimal, in any case) and those of people (``Mbps``, ``Mbit/s``, ``MB/s``).  tc reads
``mbps`` as megabytes a second while people mean megabits: in small letters it is refused, because
a limit that is eight times too high is worse than a question.
"""

from __future__ import annotations

import re

MIN_BPS = 1_000
MAX_BPS = 1_000_000_000_000

ALLOWED = "allowed: 1kbit to 1tbit, as 500kbit, 50mbit, 1gbit, 50 Mbps, 50 Mbit/s or 6.25 MB/s"

_PREFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z/]*)")
_BITS = re.compile(r"([kmgt]?)bit(?:/s|ps)?", re.IGNORECASE)
_BYTES = re.compile(r"([kKMGT]?)B/s")
_PEOPLE = re.compile(r"([KMGT])bps|([kKMGT])b/s")


def _factor(unit: str) -> int:
    """Bits per second in one ``unit``; ValueError with one sentence if it is not a unit."""
    if unit == "":
        return 1
    if found := _BITS.fullmatch(unit):
        return _PREFIX[found[1].lower()]
    if found := _BYTES.fullmatch(unit):
        return 8 * _PREFIX[found[1].lower()]
    if found := _PEOPLE.fullmatch(unit):
        return _PREFIX[(found[1] or found[2]).lower()]
    if re.fullmatch(r"[kmgt]?bps", unit):
        raise ValueError(
            f"{unit!r} is bytes a second to tc and bits a second to people; "
            f"write {unit[:-3]}bit or {unit[:-3].upper()}B/s"
        )
    raise ValueError(f"unknown unit {unit!r}; {ALLOWED}")


def parse_rate(value: object) -> int:
    """Bits per second of ``value`` (a string with a unit, or an int of bits per second).

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{value!r} is not a rate; {ALLOWED}")
    found = _RATE.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"{value!r} is not a rate; {ALLOWED}")
    try:
        rate_bps = round(float(found[1]) * _factor(found[2]))
    except ValueError as error:
        raise ValueError(f"{value!r}: {error}") from error
    if not MIN_BPS <= rate_bps <= MAX_BPS:
        raise ValueError(f"{value!r} is out of range; {ALLOWED}")
    return rate_bps


MIN_SIZE_BYTES = 2_000
MAX_SIZE_BYTES = 64 << 20
_SIZES = "allowed: 2kb to 64mb, as 64kb, 1mb (tc's, of 1024), 64 KiB or a number of bytes"
_SIZE = re.compile(r"([0-9]{1,9}) ?(?:([km]?)i?b)?", re.IGNORECASE)


def parse_size(value: object) -> int:
    """Bytes of ``value``: an int, or a string with tc's units, of which ``kb`` is 1,024 bytes.

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    found = _SIZE.fullmatch(str(value).strip()) if type(value) in (int, str) else None
    if not found:
        raise ValueError(f"{value!r} is not a size; {_SIZES}")
    size = int(found[1]) << {"": 0, "k": 10, "m": 20}[(found[2] or "").lower()]
    if not MIN_SIZE_BYTES <= size <= MAX_SIZE_BYTES:
        raise ValueError(f"{value!r} is out of range; {_SIZES}")
    return size


def format_size(size_bytes: int) -> str:
    """The shortest exact notation of a size: ``64kb``, ``1500b``."""
    for shift, unit in ((20, "mb"), (10, "kb")):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return f"{size_bytes}b"


def format_rate(rate_bps: int) -> str:
    """The shortest exact tc notation of a rate: ``50mbit``, ``1500kbit``, ``999bit``."""
    for prefix in ("t", "g", "m", "k"):
        if rate_bps and rate_bps % _PREFIX[prefix] == 0:
            return f"{rate_bps // _PREFIX[prefix]}{prefix}bit"
    return f"{rate_bps}bit"
