"""How the follower itself is: what its counters did lately, and what its source is waiting for.

`core/health` judges it; here it is only counted, once a second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..core.claims.stamp import SLACK_S
from ..core.health.report import TEXT, TOLD, SourceHealth, TrafficHealth
from ..core.htb import usable_minor
from ..core.settings import Settings
from ..errors import KernelRefused
from ..sources.base import Source
from ..sources.clock import Clock

#: Counters are compared with those of so long ago.
RECENT_S = 60.0
_STEP_S = 5.0
#: Whether traffic passes the classes is looked at so often, after so many marks, and sooner while
#: it does not: a dump of 10,000 classes costs 40 ms for each device.
_TRAFFIC_S, _TRAFFIC_SOON_S, _MARKS = 60.0, 5.0, 5

#: {minor: bytes sent} of all classes of direction 0 (upload) or 1 (download).
Sent = Callable[[int], Mapping[int, int]]


class Vitals:
    """Looks at counters.  ``tick`` once a second, the rest when a report is written."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self.started = time.time()
        self.recent: dict[str, int] = {}
        self.recent_s = 0.0
        self.last: dict[str, float] = {}
        self.traffic: TrafficHealth | None = None
        self.clock_set_s: float | None = None
        self.clock_set_by_s = 0.0
        self._now: dict[str, int] = {}
        self._steps: deque[tuple[float, dict[str, int]]] = deque([(self._clock.now(), {})])
        self._replaying = True
        self._behind_since: float | None = None
        self._born_at_claim = 0
        self._passed: tuple[float, int, int, int] | None = None

    def tick(self, source: Source, counts: Mapping[str, Any]) -> None:
        """Once a second: what has moved?"""
        offset_s = self._clock.offset_s
        now, epoch_s = self._clock.look(), time.time()
        if abs(self._clock.offset_s - offset_s) > SLACK_S:
            self.clock_set_s, self.clock_set_by_s = epoch_s, self._clock.offset_s - offset_s
        if not source.more:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        before, self._now = self._now, _flat(counts, vars(source.counters))
        for name, value in self._now.items():
            if value != before.get(name, 0):
                self.last[name] = epoch_s
        if self._now["log.claims"] != before.get("log.claims", 0):
            self._born_at_claim = self._now["flows_born"]
        if now - self._steps[-1][0] >= _STEP_S:
            self._steps.append((now, self._now))
        while len(self._steps) > 1 and now - self._steps[1][0] >= RECENT_S:
            self._steps.popleft()
        self.recent_s = now - self._steps[0][0]
        old = self._steps[0][1]
        # A source that was opened anew begins to count anew.
        self.recent = {
            name: value - old.get(name, 0)
            for name, value in self._now.items()
            if value > old.get(name, 0)
        }
        if self._replaying:
            # What is read of the past says nothing of now: its connections have mostly ended.
            self._replaying = source.replaying
            self._steps = deque([(now, self._now)])
            self.recent = {}

    def look_at_traffic(self, sent: Sent) -> None:
        """Whether what bears marks passes the users' classes: only while marks are set."""
        now, marked = self._clock.now(), self._now.get("marked", 0)
        if self._passed is None:
            if marked:
                self._passed = (now, marked, *self._passed_bytes(sent))
            return
        since, marked_then, up, down = self._passed
        soon = self.traffic is None or 0 in (self.traffic.up_bytes, self.traffic.down_bytes)
        if now - since < (_TRAFFIC_SOON_S if soon else _TRAFFIC_S) or marked - marked_then < _MARKS:
            return
        up_now, down_now = self._passed_bytes(sent)
        self._passed = now, marked, up_now, down_now
        if up_now < up or down_now < down:
            return  # classes were made anew meanwhile
        epoch_s = time.time()
        self.traffic = TrafficHealth(
            epoch_s - (now - since), epoch_s, marked - marked_then, up_now - up, down_now - down
        )

    def _passed_bytes(self, sent: Sent) -> tuple[int, int]:
        """Bytes that all users' classes have sent, (upload, download)."""
        major = self._settings.major
        try:
            up, down = (
                sum(count for minor, count in sent(d).items() if usable_minor(major, minor))
                for d in (0, 1)
            )
        except KernelRefused:
            return 0, 0  # no tree at the moment: the healer has more to say of it
        return up, down

    def source(self, source: Source) -> SourceHealth:
        """How the source is."""
        lag_s = 0.0 if self._behind_since is None else self._clock.now() - self._behind_since
        lines = self.recent.get("log.lines", 0)
        return SourceHealth(
            self._settings.source,
            self._settings.origin,
            TOLD if self._settings.source == "webhook" else TEXT,
            source.waiting,
            self.last.get("log.lines"),
            self.last.get("log.claims"),
            round(lines / self.recent_s, 1) if self.recent_s else 0.0,
            round(lag_s, 1),
            max(0, self._now.get("flows_born", 0) - self._born_at_claim),
        )


def _flat(counts: Mapping[str, Any], log: Mapping[str, Any]) -> dict[str, int]:
    """All counters by one kind of name."""
    found = {name: value for name, value in counts.items() if isinstance(value, int)}
    for name, value in log.items():
        if isinstance(value, int):
            found[f"log.{name}"] = value
        elif isinstance(value, dict):
            found.update((f"log.{name}.{inner}", number) for inner, number in value.items())
    return found
