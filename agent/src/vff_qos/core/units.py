"""Rates, sizes, amounts of data and spans of time as people write them.

Rates are understood in two families of units: those of tc(8) (``bit``, ``kbit``, ``mbit``,
``gbit``, ``tbit``, decimal, in any case) and those of people (``Mbps``, ``Mbit/s``, ``MB/s``).
tc reads ``mbps`` as megabytes a second while people mean megabits: in small letters it is refused,
because a limit that is eight times too high is worse than a question.

Sizes (of bursts) are tc's, of which ``kb`` is 1,024 bytes; volumes are decimal, as traffic is sold.
"""

from __future__ import annotations

import re

# -- rates: bits per second ----------------------------------------------------------------------

MIN_BPS = 1_000
MAX_BPS = 1_000_000_000_000

_RATES = "allowed: 1kbit to 1tbit, as 500kbit, 50mbit, 1gbit, 50 Mbps, 50 Mbit/s or 6.25 MB/s"

_RATE_PREFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z/]*)")
_BITS = re.compile(r"([kmgt]?)bit(?:/s|ps)?", re.IGNORECASE)
_BYTES = re.compile(r"([kKMGT]?)B/s")
_PEOPLE = re.compile(r"([KMGT])bps|([kKMGT])b/s")


def _factor(unit: str) -> int:
    """Bits per second in one ``unit``; ValueError with one sentence if it is not a unit."""
    if unit == "":
        return 1
    if found := _BITS.fullmatch(unit):
        return _RATE_PREFIX[found[1].lower()]
    if found := _BYTES.fullmatch(unit):
        return 8 * _RATE_PREFIX[found[1].lower()]
    if found := _PEOPLE.fullmatch(unit):
        return _RATE_PREFIX[(found[1] or found[2]).lower()]
    if re.fullmatch(r"[kmgt]?bps", unit):
        raise ValueError(
            f"{unit!r} is bytes a second to tc and bits a second to people; "
            f"write {unit[:-3]}bit or {unit[:-3].upper()}B/s"
        )
    raise ValueError(f"unknown unit {unit!r}; {_RATES}")


def parse_rate(value: object) -> int:
    """Bits per second of ``value`` (a string with a unit, or an int of bits per second).

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{value!r} is not a rate; {_RATES}")
    found = _RATE.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"{value!r} is not a rate; {_RATES}")
    try:
        rate_bps = round(float(found[1]) * _factor(found[2]))
    except ValueError as error:
        raise ValueError(f"{value!r}: {error}") from error
    if not MIN_BPS <= rate_bps <= MAX_BPS:
        raise ValueError(f"{value!r} is out of range; {_RATES}")
    return rate_bps


def format_rate(rate_bps: int) -> str:
    """The shortest exact tc notation of a rate: ``50mbit``, ``1500kbit``, ``999bit``."""
    for prefix in ("t", "g", "m", "k"):
        if rate_bps and rate_bps % _RATE_PREFIX[prefix] == 0:
            return f"{rate_bps // _RATE_PREFIX[prefix]}{prefix}bit"
    return f"{rate_bps}bit"


# -- sizes: bytes ---------------------------------------------------------------------------------

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


# -- volumes: bytes -------------------------------------------------------------------------------

_VOLUME = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGT]i?)B")
_VOLUME_PREFIX = {"k": 1, "m": 2, "g": 3, "t": 4}
_VOLUMES = "allowed: such as 500MB, 20GB, 1.5TB or 10GiB"


def parse_volume(value: object) -> int:
    """Bytes of ``value``, text such as ``20GB`` (decimal) or ``10GiB`` (binary).

    Raises ValueError with one sentence: what is wrong and what is allowed.
    """
    found = _VOLUME.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{value!r} is not an amount of data; {_VOLUMES}")
    base = 1_024 if found[2].endswith("i") else 1_000
    factor: int = base ** _VOLUME_PREFIX[found[2][0].lower()]
    return round(float(found[1]) * factor)


def format_volume(size_bytes: int) -> str:
    """A size for people, to three digits: ``20 GB``, ``1.53 MB``, ``999 B``."""
    number, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1_000, larger
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


# -- spans of time: seconds -----------------------------------------------------------------------

MAX_DURATION_S = 366 * 86_400

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"([0-9]{1,9}) ?(s|sec|m|min|h|d|w)(?: |$|(?=[0-9]))")
_TIMES = "allowed: 1s to 366d, as 90s, 30min, 2h, 1d, 1w or 1h 30min"


def parse_duration(text: str) -> int:
    """Seconds; ValueError with one sentence: what is wrong and what is allowed."""
    seconds, at = 0, 0
    while found := _PART.match(text, at):
        seconds += int(found[1]) * _SECONDS[found[2]]
        at = found.end()
    if at != len(text) or not text:
        raise ValueError(f"{text!r} is not a time; {_TIMES}")
    if not 1 <= seconds <= MAX_DURATION_S:
        raise ValueError(f"{text!r} is out of range; {_TIMES}")
    return seconds


def format_duration(seconds: float) -> str:
    """The two largest units of a span, rounded down: ``1h 59min``."""
    left, parts = int(max(seconds, 0)), []
    for unit in ("d", "h", "min", "s"):
        count, left = divmod(left, _SECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return " ".join(parts) or "0s"
