"""Two clocks and the difference between them: when somebody sets the time, it jumps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from ..core.claims.stamp import SLACK_S


class Clock:
    """CLOCK_MONOTONIC, and what to add to it for the time since the epoch.

    Both clocks run at the same speed, also while NTP corrects it; only a step of the time changes
    their difference (clock_gettime(2)).
    """

    def __init__(
        self,
        epoch: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epoch, self.now = epoch, monotonic
        self.offset_s = self._measure()
        self._stepped = -math.inf
        #: How often somebody has set it.
        self.steps = 0
        # Since the epoch: until then an earlier clock may have said the same.
        self._unclear_s = -math.inf

    def _measure(self) -> float:
        """The best of three: we may lose the processor between the clocks."""
        best = (math.inf, 0.0)
        for _ in range(3):
            before = self.now()
            epoch = self._epoch()
            after = self.now()
            best = min(best, (after - before, epoch - (before + after) / 2))
        return best[1]

    def look(self) -> float:
        """The time now; remembers whether somebody has set the clock since the last look."""
        offset = self._measure()
        now = self.now()
        self._compare(offset, self.offset_s, now)
        self.offset_s = offset
        return now

    def _compare(self, offset_s: float, before_s: float, now_s: float) -> None:
        """Somebody may have set the clock meanwhile."""
        if abs(offset_s - before_s) > SLACK_S:
            self._stepped = now_s
            self.steps += 1
            self._unclear_s = max(self._unclear_s, now_s + max(offset_s, before_s))

    @property
    def clear_since_s(self) -> float:
        """From when on a time since the epoch tells when something was, whoever noted it.

        What seems to have been before may have been noted by the clock as it was set before.
        """
        return self._unclear_s - self.offset_s

    def offset_since(self, since_s: float) -> float | None:
        """What to add, if that holds since ``since_s``; None if the time was set meanwhile."""
        return None if since_s < self._stepped or since_s == -math.inf else self.offset_s

    def save(self, at_s: float) -> dict[str, Any]:
        """A time of CLOCK_MONOTONIC in a form that outlives this run of the agent."""
        saved = {"boot": boot_id(), "up": at_s, "read_at": at_s + self.offset_s}
        return saved if self._unclear_s == -math.inf else {**saved, "unclear": self._unclear_s}

    def restore(self, saved: dict[str, Any]) -> float:
        """The time that ``save`` was given; -inf if it is not known.

        What was before this boot is before 0 whatever the clock said.  If the clock was set
        meanwhile, no stamp of that time is to be believed.
        """
        if "read_at" not in saved:
            return -math.inf
        read_at, up = float(saved["read_at"]), float(saved["up"])
        if saved["boot"] != boot_id():
            self._stepped = self.now()
            return min(0.0, read_at - self.offset_s)
        self._unclear_s = max(self._unclear_s, float(saved.get("unclear", -math.inf)))
        self._compare(self.offset_s, read_at - up, self.now())
        return up


@cache
def boot_id() -> str:
    """What tells this run of the kernel from others (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
