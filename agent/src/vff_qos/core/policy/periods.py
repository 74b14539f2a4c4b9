"""Times that usage is counted in: sliding windows, and the days and months of quotas."""

from __future__ import annotations

from array import array
from datetime import date, datetime, timedelta, tzinfo

from .terms import DAY, VOLUME, FairUseRule

#: Per window: 24 h in hours, 15 min in 37.5 s.
BUCKETS = 24
CELLS = BUCKETS + 1
_EMPTY = array("I", bytes(4 * BUCKETS))
_FULL = 0xFFFFFFFF
_DAY = timedelta(days=1)


class Window:
    """A sliding window: amounts by time, in buckets.

    A view of a part of ``cells``: the number of the newest bucket since the epoch, then the
    buckets.  Ten thousand users have several each, so a bucket is 32 bits of ``unit``.
    """

    __slots__ = ("_at", "_cells", "_unit", "_width_s")

    def __init__(self, rule: FairUseRule, cells: array[int], number: int = 0) -> None:
        """The ``number``-th window of ``cells``; ``rule`` says how long it is."""
        self._cells, self._at = cells, number * CELLS
        self._width_s = rule.window_s / BUCKETS
        #: At most 1/2^24 of the threshold is lost in rounding.
        self._unit = max(rule.threshold >> 24, 1) if rule.kind == VOLUME else 1

    def _slide(self, now_s: float) -> int:
        """Forget what is older than the window; returns the number of the newest bucket.

        A clock that was set back lets the window stand still, one that is far off empties it.
        """
        cells, at = self._cells, self._at
        newest, head = int(now_s // self._width_s), cells[at]
        if abs(newest - head) >= BUCKETS:
            self.clear()
        elif newest <= head:
            return head
        else:
            for number in range(head + 1, newest + 1):
                cells[at + 1 + number % BUCKETS] = 0
        cells[at] = newest
        return newest

    def add(self, start_s: float, now_s: float, amount: int) -> None:
        """Enter what was used evenly between two times."""
        head = self._slide(now_s)
        amount //= self._unit
        first = int(start_s // self._width_s)
        if first >= head or start_s >= now_s:
            self._enter(head, amount)
            return
        oldest = max(first, head - BUCKETS + 1)
        # Whole numbers up to each border, so that the parts add up to the amount.
        before = self._until(oldest, start_s, now_s, amount) if oldest > first else 0
        for number in range(oldest, head + 1):
            upto = self._until(number + 1, start_s, now_s, amount)
            self._enter(number, upto - before)
            before = upto

    def _until(self, number: int, start_s: float, now_s: float, amount: int) -> int:
        """How much of ``amount`` was used before bucket ``number`` began."""
        at_s = number * self._width_s
        if at_s >= now_s:
            return amount
        return int(amount * (at_s - start_s) / (now_s - start_s))

    def _enter(self, number: int, amount: int) -> None:
        cell = self._at + 1 + number % BUCKETS
        self._cells[cell] = min(self._cells[cell] + amount, _FULL)

    def join(self, other: Window, now_s: float) -> None:
        """Add what another one of the same rule holds."""
        self._slide(now_s)
        other._slide(now_s)
        for number in range(BUCKETS):
            self._enter(number, other._cells[other._at + 1 + number])

    def total(self, now_s: float) -> int:
        """The amount in the window."""
        self._slide(now_s)
        return sum(self._cells[self._at + 1 : self._at + CELLS]) * self._unit

    def clear(self) -> None:
        """Forget everything."""
        self._cells[self._at + 1 : self._at + CELLS] = _EMPTY


Period = tuple[float, float]


def period(per: str, reset: int, now_s: float, zone: tzinfo | None = None) -> Period:
    """(start, end) of the quota's period around ``now_s``; ``zone`` None is the node's own.

    A period starts at a local time.  One that a change to summer time leaves out is the moment of
    the change, one that comes twice is the first.  A month that has no such day starts on its last.
    """
    today = datetime.fromtimestamp(now_s, zone).date()
    if per == DAY:
        starts = [moment(today + n * _DAY, reset, zone) for n in (-1, 0, 1, 2)]
    else:
        starts = []
        for months in (-1, 0, 1, 2):
            year, month0 = divmod(today.year * 12 + today.month - 1 + months, 12)
            first = date(year, month0 + 1, 1)
            last = (first + 31 * _DAY).replace(day=1) - _DAY
            starts.append(moment(min(first + (reset - 1) * _DAY, last), 0, zone))
    start = max(at for at in starts if at <= now_s)
    return start, min(at for at in starts if at > now_s)


def moment(day: date, hour: int, zone: tzinfo | None) -> float:
    """When an hour of a local day begins, in seconds since the epoch."""
    return datetime(day.year, day.month, day.day, hour, tzinfo=zone).timestamp()
