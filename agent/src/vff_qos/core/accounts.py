"""Accounts: from the counters of classes to what every user has moved, for good.

A counter is no account: a class outlives its user and goes to another one, and a class that was
made anew counts from 0.  So each direction has a *meter* for each minor, which says how much of
the class's counter has been booked, and what a counter is above its meter is its owner's:

- A counter below its meter belongs to a class that was made anew: all of it is new.
- Whoever makes a class has looked at which ones there are before, and sets the meters of those that
  are not there to 0 (`gone`): a new class may be above its old meter by the time it is read.
- Whoever takes a class from its user books it first, so that none of it is the next user's.

The caller keeps meters and accounts in one transaction, and so a crash loses nothing, nor does it
book anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, tzinfo
from typing import NamedTuple

from .htb import FIRST_USER_MINOR, UNCLASSIFIED_MINOR
from .owners import ACTIVE, DEFAULT_SHARED, RESTRICTED_KEY, Owner
from .policy.periods import moment

UPLOAD, DOWNLOAD = 0, 1
#: Accounts of what is no user's: flows in doubt, newcomers without a class, traffic of nobody, and
#: classes that the state does not know.
IN_DOUBT, NEWCOMERS, UNCLASSIFIED, UNKNOWN = RESTRICTED_KEY, DEFAULT_SHARED, "\x05", "\x06"

#: An hour's number is its beginning in units of so many seconds since the epoch: hours begin with
#: the node's own, and all zones are multiples of it.
QUARTER_S = 900
_HOUR_S = 3_600
#: What was moved since the last reading is booked where the middle of it lies, of the last minutes.
_RECENT_S = 600.0

#: Which accounts share what a class has moved; none: it waits for the next reading.
Whose = Callable[[int], Sequence[str]]


class Booking(NamedTuple):
    """What a reading of one class leads to: its meter now, and (account, bytes)."""

    minor: int
    meter: int
    amounts: list[tuple[str, int]]


def entries(sent: Mapping[int, int], meters: Mapping[int, int], whose: Whose) -> Iterator[Booking]:
    """What is to be booked: ``sent`` are a device's counters, ``meters`` what was booked of them.

    Both by minor, in bytes.
    """
    for minor, count in sent.items():
        meter = meters.get(minor, 0)
        if count == meter or minor < FIRST_USER_MINOR:
            continue
        moved = count - meter if count > meter else count
        if not moved:
            yield Booking(minor, count, [])
        elif accounts := whose(minor):
            yield Booking(minor, count, shares(moved, accounts))


def shares(moved: int, accounts: Sequence[str]) -> list[tuple[str, int]]:
    """An amount in equal parts, whole bytes, nothing lost."""
    part, rest = divmod(moved, len(accounts))
    return [(key, part + (number < rest)) for number, key in enumerate(accounts)]


def first_entries(sent: Mapping[int, int]) -> Iterator[Booking]:
    """The very first reading: nobody knows whose the counters are, so that they are only noted."""
    return (Booking(minor, count, []) for minor, count in sent.items() if minor >= FIRST_USER_MINOR)


def gone(meters: Mapping[int, int], there: Collection[int]) -> list[int]:
    """Minors whose class is not there any more: the next one counts from 0."""
    return [minor for minor, meter in meters.items() if meter and minor not in there]


def whose(
    minor: int, owner: Owner | None, left: Mapping[int, Iterable[str]], is_over: bool
) -> Sequence[str]:
    """The accounts of a class.

    ``left``: whose flows have left which class of flows in doubt since the last reading; they share
    what it has moved, as with quotas.  What nobody has claimed waits for that, until ``is_over``
    (the hour) or the class rests; then it is nobody's.
    """
    if minor == UNCLASSIFIED_MINOR:
        return (UNCLASSIFIED,)
    if owner is None:
        return (UNKNOWN,)
    if owner.is_user:
        return (owner.key,)
    if owner.key == DEFAULT_SHARED:
        return (NEWCOMERS,)
    if not owner.key.startswith(RESTRICTED_KEY):
        return (UNKNOWN,)
    # Of what all further addresses share, nobody can tell whose it is.
    if owner.is_common:
        return (IN_DOUBT,)
    if keys := left.get(minor):
        return sorted(keys)
    return (IN_DOUBT,) if is_over or owner.state != ACTIVE else ()


# -- when ------------------------------------------------------------------------------------------


def hour_of(when_s: float, zone: tzinfo | None = None) -> int:
    """The number of the hour of ``when_s`` (seconds since the epoch); ``zone`` None: the node's."""
    local = datetime.fromtimestamp(when_s, zone).astimezone(zone)
    offset = local.utcoffset()
    shift_s = int(offset.total_seconds()) if offset else 0
    return ((int(when_s) + shift_s) // _HOUR_S * _HOUR_S - shift_s) // QUARTER_S


def day_of(when_s: float, zone: tzinfo | None = None) -> int:
    """The number of the local day of ``when_s``: that of ``date.toordinal``."""
    return datetime.fromtimestamp(when_s, zone).date().toordinal()


def hour_start(hour: int) -> float:
    """When an hour began, in seconds since the epoch."""
    return float(hour * QUARTER_S)


def day_start(day: int, zone: tzinfo | None = None) -> float:
    """When a local day began, in seconds since the epoch."""
    return moment(date.fromordinal(day), 0, zone)


def booked_at(before_s: float | None, now_s: float) -> float:
    """The time under which is booked what was moved between two readings."""
    if before_s is None or not before_s < now_s:
        return now_s
    return now_s - min(now_s - before_s, _RECENT_S) / 2
