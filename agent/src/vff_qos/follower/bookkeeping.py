"""When the agent books what users have moved: as often as it costs next to nothing.

Counters are read for quotas, fair use and the look at traffic, too; each of these readings is
booked if the last one is not of a moment ago, and one is only made for accounting where none came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ..core import events
from ..core.accounts import QUARTER_S, hour_of, whose
from ..core.pace import Pace
from ..core.settings import Settings
from ..journal import Journal
from ..state import State, StateError
from .registry import Registry

#: Readings follow each other after so long: a class that others delete, and a node that dies, cost
#: at most what has passed since the last one.
PACE = Pace(share=1 / 5_000, least_s=30.0, most_s=300.0)


class Bookkeeping:
    """What is due.  ``now_s`` is a clock that never goes back."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        registry: Registry,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives seconds since the epoch."""
        self._settings, self._state, self._registry = settings, state, registry
        self._journal, self._clock = journal, clock
        self._gap_s = PACE.least_s
        self._booked_s = [float("-inf")] * 2
        self._next_look = [float("-inf")] * 2
        self._hour, self._quarter = hour_of(clock()), int(clock()) // QUARTER_S
        self._hours = [self._hour] * 2
        # Whether an hour has ended since the last reading that was booked.
        self._over = [False, False]
        self._cost_s = [0.0, 0.0]

    def due(self, now_s: float) -> int | None:
        """The direction whose counters are to be read now; one at a time.  None: neither."""
        hour = self._hour_now()
        for direction, at_s in enumerate(self._next_look):
            # At the end of each hour, so that hours are what they say.
            if now_s >= at_s or hour != self._hours[direction]:
                return direction
        return None

    def book(self, direction: int, sent: Mapping[int, int], now_s: float, began_s: float) -> None:
        """Book a reading: {minor: bytes sent}; under the lock.

        ``began_s``: by the clock of this thread's CPU time, when the reading began.
        """
        self._look_at_clock(direction)
        is_over = self._over[direction]
        if not is_over and now_s - self._booked_s[direction] < self._gap_s / 2:
            # The gap has grown since, with what the other direction cost.
            self._next_look[direction] = self._booked_s[direction] + self._gap_s
            return
        registry, accounts = self._registry, self._state.accounts
        left, people = registry.left[direction], registry.names.people

        def keys(minor: int) -> Sequence[str]:
            found = whose(minor, registry.owner(minor), left, is_over)
            # A class that was an identity's, before it was joined with others.
            return [people.get(key, key) for key in found] if people else found

        try:
            accounts.book(direction, sent, keys, self._clock())
            if is_over:
                accounts.forget(
                    self._clock(), self._settings.usage_hourly_days, self._settings.usage_daily_days
                )
        except StateError as error:
            effect = "what users move is booked when it can be written"
            self._journal.tell(events.STATE, error=str(error), effect=effect)
            self._next_look[direction] = now_s + PACE.least_s
            return
        left.clear()
        self._over[direction], self._booked_s[direction] = False, now_s
        self._cost_s[direction] = time.thread_time() - began_s
        self._gap_s = PACE.gap_s(sum(self._cost_s))
        self._next_look[direction] = now_s + self._gap_s

    def put_off(self, direction: int, now_s: float) -> None:
        """The counters cannot be read at the moment."""
        self._look_at_clock(direction)
        self._next_look[direction] = now_s + PACE.least_s

    def _hour_now(self) -> int:
        quarter = int(self._clock()) // QUARTER_S
        if quarter != self._quarter:
            self._quarter, self._hour = quarter, hour_of(self._clock())
        return self._hour

    def _look_at_clock(self, direction: int) -> None:
        hour = self._hour_now()
        self._over[direction] |= hour != self._hours[direction]
        self._hours[direction] = hour
