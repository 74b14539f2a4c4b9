"""The last minute of each user, in twelve cells of five seconds."""

from __future__ import annotations

import math
from collections import deque

from .figures import DOWNLOAD, UPLOAD, Moment

CELL_S, CELLS = 5.0, 12
#: A sparkline's full height is the highest rate of the minute, or this share of the limit: so that
#: the little that an idle device sends is no mountain.
_LOW = 0.125


class Minute:
    """What passed, by cell and minor.  Times in seconds that never go back."""

    def __init__(self) -> None:
        # Of those alone who sent anything: 10,000 users cost nothing while they are idle.
        self._cells: deque[tuple[int, dict[int, float]]] = deque(maxlen=CELLS + 1)

    def add(self, moment: Moment, now_s: float) -> None:
        """A moment whose second reading was at ``now_s``: its bytes go to the cells they lie in."""
        start_s = now_s - moment.seconds
        if not moment.seconds:
            return
        moved: dict[int, int] = {}
        for direction in (UPLOAD, DOWNLOAD):
            before, after = moment.before[direction], moment.after[direction]
            for minor, sent in after.items():
                if sent > before.get(minor, sent):
                    moved[minor] = moved.get(minor, 0) + sent - before[minor]
        first, last = (math.floor(at_s / CELL_S) for at_s in (start_s, now_s))
        for number in range(max(first, last - CELLS), last + 1):
            part_s = min(now_s, (number + 1) * CELL_S) - max(start_s, number * CELL_S)
            if part_s <= 0:
                continue
            cell = self._cell(number)
            for minor, count in moved.items():
                cell[minor] = cell.get(minor, 0.0) + count * part_s / moment.seconds

    def _cell(self, number: int) -> dict[int, float]:
        if not self._cells or self._cells[-1][0] < number:
            self._cells.append((number, {}))
        return next(cell for known, cell in self._cells if known == number)

    def rates(self, minor: int, now_s: float) -> list[float]:
        """Bits a second in each cell, the oldest first; the last one is the latest whole cell.

        Cells from before the first moment are 0.
        """
        last = math.floor(now_s / CELL_S) - 1
        known = dict(self._cells)
        return [
            known.get(number, {}).get(minor, 0.0) * 8 / CELL_S
            for number in range(last - CELLS + 1, last + 1)
        ]


def heights(rates: list[float], limit_bps: int, steps: int) -> list[int]:
    """Heights of a sparkline's bars, 0 to ``steps``; whoever sent anything has 1 at least."""
    top = max(*rates, limit_bps * _LOW, 1.0)
    return [math.ceil(rate / top * steps) for rate in rates]
