"""One look at the node for everybody who watches the page, and none while nobody does."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any, NamedTuple

from ..commands.status import devices_of
from ..commands.watch import Due, Watch
from ..config import Paths
from ..core.figures import DIRECTIONS, Figures, ordered
from ..core.pace import Pace
from ..errors import QosError
from ..follower.memory import trim

#: Counters are read so often, all else so seldom, and each takes at most this share of a core.
_COUNT, _LOOK = Pace(share=0.03, least_s=2.0), Pace(share=0.03, least_s=5.0)
#: After so long without a question nobody watches.
_LINGER_S = 20.0
#: How long somebody waits for a picture.
_PATIENCE_S = 15.0
#: The first rates need two readings.
_FIRST_S = 0.5
#: Points of the node's own plot: ten minutes.
_TRAIL = 300
#: Users of the picture that everybody gets.
TOP = 10


class Busy(QosError):
    """The node was not looked at in time."""


class Picture(NamedTuple):
    """The node at one moment; never changed once it is made."""

    number: int
    #: As ``status --json``, without users.
    status: dict[str, Any]
    #: What changes every two seconds: rates of the node, counts of users, the busiest of them.
    now: dict[str, Any]
    #: The same as JSON: each of twenty pages is told it.
    now_text: str


class Observer:
    """A thread that looks, and what it saw last."""

    def __init__(self, paths: Paths) -> None:
        self._watch = Watch(paths)
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._problem: QosError | None = None
        self._made_s = self._wanted_s = float("-inf")
        #: Nobody watched for a while, or the last look has failed.
        self._rested = True
        #: Time, download and upload, and what of each is nobody's, in bit/s.
        self._trail: deque[tuple[float, int, int, int, int]] = deque(maxlen=_TRAIL)
        self._sorted: dict[tuple[str, tuple[str, ...]], list[Figures]] = {}
        self.is_closing = False
        threading.Thread(target=self._run, name="observer", daemon=True).start()

    # -- asking -----------------------------------------------------------------------------------

    def picture(self, after: int = -1, within_s: float = _PATIENCE_S) -> Picture:
        """A picture of now, younger than the one of number ``after``.

        Raises QosError: why there is none.
        """
        until_s = time.monotonic() + within_s
        with self._changed:
            self._wanted_s = time.monotonic()
            self._changed.notify_all()
            while True:
                if self._problem is not None:
                    raise self._problem
                # While somebody watches there is a next one; one of before a rest is too old.
                is_fresh = not self._rested or time.monotonic() - self._made_s < _COUNT.least_s
                if self._picture is not None and is_fresh and self._picture.number > after:
                    return self._picture
                left_s = until_s - time.monotonic()
                if left_s <= 0 or self.is_closing:
                    raise Busy("the node was not looked at in time; it may be busy")
                self._changed.wait(left_s)

    def users(
        self, patterns: list[str], sort: str, offset: int, limit: int
    ) -> tuple[int, list[dict[str, Any]]]:
        """How many users a pattern fits, and some of them in an order.  Raises QosError."""
        self.picture()
        with self._changed:
            found = self._ordered(patterns, sort)
            return len(found), [self._shown(one) for one in found[offset : offset + limit]]

    def user(self, email: str) -> dict[str, Any] | None:
        """One user, by name; None if they have no class.  Raises QosError."""
        self.picture()
        with self._changed:
            for one in self._watch.users([]):
                if one.name == email:
                    return self._shown(one)
        return None

    def trail(self) -> list[tuple[float, int, int, int, int]]:
        """The node's rates of the last minutes, as far as somebody watched."""
        with self._changed:
            return list(self._trail)

    def _ordered(self, patterns: list[str], sort: str) -> list[Figures]:
        key = sort, tuple(patterns)
        if key not in self._sorted:
            if len(self._sorted) >= 8:
                self._sorted.clear()
            self._sorted[key] = ordered(self._watch.users(patterns), sort)
        return self._sorted[key]

    def _shown(self, one: Figures) -> dict[str, Any]:
        minute = [round(rate) for rate in self._watch.rates(one.owner.minor)]
        return {**one.to_json(), "minute": minute}

    # -- looking ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._look_for_ever()
        finally:
            if not self.is_closing:
                # Without it the page would show yesterday; systemd starts us again.
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

    def _look_for_ever(self) -> None:
        counts, looks = Due(_COUNT), Due(_LOOK)
        while not self.is_closing:
            with self._changed:
                while time.monotonic() - self._wanted_s > _LINGER_S:
                    self._rested = True
                    self._changed.wait()
            try:
                # A look counts, too; rates of the moment between both would be of chance.
                if self._rested:
                    self._watch.forget_rates()
                    self._look(looks)
                    time.sleep(_FIRST_S)
                    self._count(counts)
                elif time.monotonic() >= looks.due_s:
                    self._look(looks)
                    counts.took(0.0)
                else:
                    self._count(counts)
                self._publish()
            except QosError as error:
                with self._changed:
                    self._problem, self._rested = error, True
                    self._changed.notify_all()
                time.sleep(_COUNT.least_s)
                continue
            time.sleep(max(0.1, counts.due_s - time.monotonic()))

    def _look(self, due: Due) -> None:
        begun_s = time.thread_time()
        # Nobody reads what is seen while it is seen anew.
        with self._changed:
            self._sorted.clear()
            self._watch.look(spare=True)
        trim()
        due.took(time.thread_time() - begun_s)

    def _count(self, due: Due) -> None:
        begun_s = time.thread_time()
        with self._changed:
            self._sorted.clear()
            self._watch.count()
        due.took(time.thread_time() - begun_s)

    def _publish(self) -> None:
        with self._changed:
            self._picture = self._made()
            self._problem, self._rested, self._made_s = None, False, time.monotonic()
            self._changed.notify_all()

    def _made(self) -> Picture:
        watch, time_s = self._watch, time.time()
        devices = devices_of(watch.moment)
        found = self._ordered([], "rate")
        number = self._picture.number + 1 if self._picture else 0
        if watch.moment.seconds:
            rates = [devices[name][key] for key in ("rate_bps", "unclassified_bps")
                     for name in reversed(DIRECTIONS)]  # fmt: skip
            self._trail.append((round(time_s, 1), *rates))
        now = {
            "time": time_s,
            "verdict": watch.level,
            "reason": watch.reason,
            "ceil_bps": watch.ceil_bps,
            "devices": devices,
            "connections": sum(watch.moment.flows.values()),
            "users": len(found),
            "active": sum(bool(one.flows) for one in found),
            "top": [self._shown(one) for one in found[:TOP]],
        }
        return Picture(number, watch.status(), now, json.dumps(now))
