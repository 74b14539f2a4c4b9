"""Classes made before they are needed: adding one walks all others, changing one does not.

What is missing is made in slices of some milliseconds while no claims come: classes of active
users that a reboot or somebody else took away, then spare ones for users to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.owners import Minors, Owner, without_class
from .registry import Registry

#: How long classes are made without a look at claims: one class more may be begun.
SLICE_S = 0.005
#: How many times longer than the slice the pause after it is: users who have no class return soon,
#: spare classes have time.
_RESTORE_PAUSE, _REFILL_PAUSE = 0.5, 4.0


class Pool:
    """What is still to be made.  The caller holds the lock for `work`."""

    def __init__(
        self, registry: Registry, pool_min: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """At least ``pool_min`` classes shall wait for new users."""
        self._registry, self._pool_min, self._clock = registry, pool_min, clock
        self._todo: list[Owner] = []
        # What was looked through: owners and classes that others have changed are read anew.
        self._seen: Minors | None = None
        #: When the next slice is due, by ``clock``; None: when there is something to do.
        self.due: float | None = None

    def look_again(self) -> None:
        """Owners have come whose classes nobody has made."""
        self._seen = None

    @property
    def has_work(self) -> bool:
        """Whether there is something to do; cheap."""
        minors = self._registry.minors
        return minors is not self._seen or bool(self._todo) or minors.pooled < self._pool_min

    def work(self, now_s: float) -> None:
        """Make classes for `SLICE_S` and say in ``due`` when to go on.

        ``now_s`` is the time since the epoch.  When the kernel refuses, the rest waits for the
        repair that the registry then wants.
        """
        begin = self._clock()
        self._plan(now_s)
        registry = self._registry
        minors, has_class = registry.minors, registry.classes.has
        restoring = bool(self._todo) and self._todo[-1].is_user
        while self._todo and self._clock() < begin + SLICE_S:
            owner = self._todo.pop()
            if minors.by_minor.get(owner.minor) is owner and not has_class(owner.minor):
                registry.ensure([owner])
                if not has_class(owner.minor):
                    self._todo.clear()
        end = self._clock()
        pause = _RESTORE_PAUSE if restoring else _REFILL_PAUSE
        self.due = end + pause * (end - begin) if self._todo else None

    def _plan(self, now_s: float) -> None:
        """New spare owners, and the owners whose class is missing, the most urgent last."""
        registry = self._registry
        minors = registry.minors
        fresh = minors.spares(self._pool_min - minors.pooled, now_s)
        if fresh:
            registry.save(fresh)
        if minors is not self._seen:
            self._seen = minors
            missing = without_class(minors, registry.classes.has, self._pool_min)
            self._todo = missing[::-1]
        elif fresh:
            self._todo = fresh[::-1] + self._todo
