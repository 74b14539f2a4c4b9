"""What metrics are made of: what ``status`` shows, what accounts hold, and which users are shown.

Nothing is measured or judged here.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from ..core.figures import Figures, natural

#: What somebody has moved: bytes (up, down).
Moved = tuple[int, int]


@dataclass(frozen=True)
class ShownUser:
    """One user: their figures, None without a class, and what they have moved, None if nothing was
    ever booked."""

    name: str
    figures: Figures | None
    moved: Moved | None


@dataclass(frozen=True)
class Snapshot:
    """A look at a node.

    ``status`` is what ``status --json`` gives without the users, ``users`` are these.  ``moved`` is
    what the accounts of users hold, by name, ``recent`` what of it is of the last one or two hours,
    and ``read_s`` until when they were booked (seconds since the epoch; None: never).
    """

    status: Mapping[str, Any]
    users: Sequence[Figures] = ()
    moved: Mapping[str, Moved] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)
    read_s: float | None = None

    def chosen(self, most: int) -> list[ShownUser]:
        """So many: those who have moved most of late, then those with most connections."""
        figures = {one.name: one for one in self.users}
        names: Iterable[str] = figures.keys() | self.moved.keys()

        def rank(name: str) -> tuple[int, int, Any]:
            one = figures.get(name)
            return -self.recent.get(name, 0), -one.flows if one else 0, natural(name)

        if most < len(figures.keys() | self.moved.keys()):
            names = nsmallest(most, names, rank)
        return [
            ShownUser(name, figures.get(name), self.moved.get(name))
            for name in sorted(names, key=natural)
        ]
