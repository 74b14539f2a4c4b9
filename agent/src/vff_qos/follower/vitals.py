"""How the follower itself is: what its counters did lately, and what its sources are waiting for.

`core/health` judges it; here it is only counted, once a second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.claims.stamp import SLACK_S
from ..core.health.report import SourceHealth, TrafficHealth
from ..core.health.rules import SILENT_BORN, SILENT_S
from ..core.htb import usable_minor
from ..core.settings import Settings
from ..errors import KernelRefused
from ..sources.clock import Clock
from .intake import Reading, summed

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
        self.recent_s = 0.0
        self.last: dict[str, float] = {}
        self.traffic: TrafficHealth | None = None
        self.clock_set_s: float | None = None
        self.clock_set_by_s = 0.0
        # Of the last tick: what it was given, and all counters by one kind of name.
        self._seen: tuple[Mapping[str, Any], Mapping[str, Any]] = {}, {}
        self._now: dict[str, int] = {}
        self._steps: deque[tuple[float, dict[str, int]]] = deque([(self._clock.now(), {})])
        self._replaying = True
        self._of_sources = [_SourceVitals() for _source in settings.sources]
        #: Counters of all sources together.
        self.log: dict[str, Any] = {}
        self._passed: tuple[float, int, int, int] | None = None
        self._repairs = 0

    def saw_claims(self, number: int, born: int) -> None:
        """A source made claims when ``born`` flows had begun.

        Noted at once: with the next tick, what began in between would count as before them.
        """
        self._of_sources[number].born_at_claim = born

    def tick(self, readings: Sequence[Reading], counts: Mapping[str, Any]) -> None:
        """Once a second: what has moved?"""
        offset_s = self._clock.offset_s
        now, epoch_s = self._clock.look(), time.time()
        if abs(self._clock.offset_s - offset_s) > SLACK_S:
            self.clock_set_s, self.clock_set_by_s = epoch_s, self._clock.offset_s - offset_s
        for reading, own in zip(readings, self._of_sources, strict=True):
            own.tick(reading, now, epoch_s, int(counts.get("flows_born", 0)))
        self.log = summed(own.log for own in self._of_sources)
        seen = counts, self.log
        if seen != self._seen:
            self._seen = seen
            before, self._now = self._now, _flat(counts, self.log)
            for name, value in self._now.items():
                if value != before.get(name, 0):
                    self.last[name] = epoch_s
        if now - self._steps[-1][0] >= _STEP_S:
            self._steps.append((now, self._now))
        while len(self._steps) > 1 and now - self._steps[1][0] >= RECENT_S:
            self._steps.popleft()
        self.recent_s = now - self._steps[0][0]
        if self._replaying:
            # What is read of the past says nothing of now: its connections have mostly ended.
            self._replaying = any(r.source is not None and r.source.replaying for r in readings)
            self._steps = deque([(now, self._now)])

    @property
    def recent(self) -> dict[str, int]:
        """How much each counter grew within the last ``recent_s`` seconds, those that did."""
        old = self._steps[0][1]
        # A source that was opened anew begins to count anew.
        return {
            name: value - old.get(name, 0)
            for name, value in self._now.items()
            if value > old.get(name, 0)
        }

    def look_at_traffic(self, sent: Sent) -> None:
        """Whether what bears marks passes the users' classes: only while marks are set."""
        now, marked = self._clock.now(), self._now.get("marked", 0)
        repairs = self._now.get("repairs", 0)
        if self._passed is None or repairs != self._repairs:
            # What passed before a repair says nothing of now.
            self._repairs, self.traffic = repairs, None
            self._passed = (now, marked, *self._passed_bytes(sent)) if marked else None
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
        major, trees = self._settings.layout
        try:
            up, down = (
                sum(count for minor, count in sent(d).items() if usable_minor(major, minor, trees))
                for d in (0, 1)
            )
        except KernelRefused:
            return 0, 0  # no tree at the moment: the healer has more to say of it
        return up, down

    def sources(
        self, readings: Sequence[Reading], nobodys: Callable[[int, float], int]
    ) -> list[SourceHealth]:
        """How each source is; ``nobodys`` is asked only of one that has long said nothing, beside
        others: how many flows to its ports began within so many seconds and are nobody's."""
        now, epoch_s = self._clock.now(), time.time()
        found = []
        for number, (reading, own) in enumerate(zip(readings, self._of_sources, strict=True)):
            health = own.health(reading, now)
            quiet_s = epoch_s - max(health.last_claim_s or 0.0, self.started)
            is_quiet = quiet_s >= SILENT_S and health.flows_since_claim >= SILENT_BORN
            if is_quiet and len(readings) > 1:
                health = replace(health, nobodys_since_claim=nobodys(number, quiet_s))
            found.append(health)
        return found


class _SourceVitals:
    """Of one source."""

    def __init__(self) -> None:
        #: Its counters until now, those of before it was opened anew included.
        self.log: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self._behind_since: float | None = None
        self._born = 0
        #: Flows that had begun when it last said whose one is.
        self.born_at_claim = 0
        self._lines: deque[tuple[float, int]] = deque()

    def tick(self, reading: Reading, now: float, epoch_s: float, born: int) -> None:
        """Once a second; ``born``: flows that have begun since the start."""
        if not reading.more:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        old, source = self.log, reading.source
        own = {} if source is None else vars(source.counters)
        self.log = summed((reading.counted, own))
        for name, value in self.log.items():
            if value and value != old.get(name):
                self._last[name] = epoch_s
        self._born = born
        if not self._lines or now - self._lines[-1][0] >= _STEP_S:
            self._lines.append((now, self.log.get("lines", 0)))
        while len(self._lines) > 1 and now - self._lines[1][0] >= RECENT_S:
            self._lines.popleft()
        if source is not None and source.replaying:
            self._lines.clear()

    def health(self, reading: Reading, now: float) -> SourceHealth:
        """How it is."""
        settings = reading.settings
        since, lines = self._lines[0] if self._lines else (now, 0)
        per_s = (self.log.get("lines", 0) - lines) / (now - since) if now > since else 0.0
        return SourceHealth(
            kind=settings.type,
            name=settings.name,
            origin=settings.origin,
            trust=settings.trust,
            waiting=reading.waiting,
            last_line_s=self._last.get("lines"),
            last_claim_s=self._last.get("claims"),
            lines_per_s=round(per_s, 1),
            lag_s=round(0.0 if self._behind_since is None else now - self._behind_since, 1),
            flows_since_claim=max(0, self._born - self.born_at_claim),
            log=self.log,
            last={name: round(when, 1) for name, when in self._last.items()},
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
