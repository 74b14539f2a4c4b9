"""Moves users to another tree where what they may use has become too different.

Users go to the lightest tree when they come (`core.balance`), but limits change, others leave, and
with another number of trees everybody is where their minor says.  A user who moves gets a minor of
the other tree and its class first, then all their flows that class's mark.  What still waits in the
old class is dropped then, or the user would have both limits for as long as it lasts: some ms of a
TCP connection, which takes it for one of CoDel's drops, seconds of who sends without listening.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from ..core import events
from ..core.flows.record import MINOR
from ..core.htb import format_classid
from ..core.layout import Layout
from ..errors import Exhausted
from ..journal import Journal
from .flow_table import FlowTable
from .marking import Marking
from .registry import Registry

#: One user at a time, and rarely: a move is felt by nobody, but serves those who stay for hours.
_PAUSE_S = 60.0
#: After the start: users are adopted first, and come with their next words.
_FIRST_S = 20.0


class Balancing:
    """The caller holds the lock for `move_one`."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        flows: FlowTable,
        marking: Marking,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` never goes back."""
        self._layout, self._registry, self._flows = layout, registry, flows
        self._marking, self._journal, self._clock = marking, journal, clock
        self._due = clock() + _FIRST_S if layout.trees > 1 else float("inf")

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self._clock() >= self._due

    def look_soon(self) -> None:
        """Limits are others: trees may be uneven."""
        if self._layout.trees > 1:
            self._due = self._clock()

    def move_one(self, staying: Set[int]) -> bool:
        """Move whoever levels the trees best; returns whether somebody has moved.

        ``staying``: minors of those who do not.
        """
        self._due = self._clock() + _PAUSE_S
        registry, balance = self._registry, self._registry.balance
        move = balance.better(staying) if balance is not None else None
        owner = registry.owner(move[0]) if move is not None else None
        if move is None or owner is None or not registry.is_shaped(owner):
            return False
        before = owner.minor
        try:
            moved, left = registry.move(owner, move[1])
        except Exhausted:
            return False  # that tree has no minor left
        after = moved.minor
        if not registry.classes.has(after):
            return True  # the kernel has refused it: the old class holds until the next word
        mirror = self._flows.mirror
        flows = list(mirror.flows_of(before))
        self._marking.give((client, record, record & ~MINOR | after) for client, record in flows)
        registry.leave(left)
        self._journal.tell(
            events.BALANCED, self._layout.mark(after), email=owner.key,
            before=format_classid(self._layout.mark(before)), flows=len(flows),
        )  # fmt: skip
        return True
