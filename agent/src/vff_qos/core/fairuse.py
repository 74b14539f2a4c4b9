"""Dynamic fair use: which users their own traffic slows down, from when and until when.

A plan's rules count what a user's two classes have sent (never what the proxy says):

- ``more_than 20GB within 24h``: a volume in a sliding window;
- ``above 95% during 15min``: a rate; its window holds the time that the bytes take at the user's
  own limit, so that a limit that changes meanwhile does no harm;
- a quota: a volume since the last reset, at local midnight of the node.

What keeps it from flapping and from punishing twice:

- A penalty lasts as long as the rule says, whatever the user does; a quota's until the reset.
- A rule that fires empties its window, and the window stays closed while its penalty lasts: no
  byte is held against a user twice by one rule, and none that was sent under its penalty.
- Rates are not measured while any penalty or an override by hand is in force: that limit is not
  the plan's.
- Windows are rings of buckets, of which the oldest is forgotten as a whole: at most 1/24 of a
  window is forgotten too early, nothing is remembered too long.

Counters are kept by minor, because a class outlives its user; one that went backwards belongs to
a class that was made anew and counts from zero.
"""

from __future__ import annotations

import calendar
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from .policy import Limits
from .terms import DAY, DOWNLOAD, RATE, UPLOAD, VOLUME, Quota, Rule, Terms

#: Name of the quota among a user's penalties; no rule is called so.
QUOTA = "quota"

#: Per window: 24 h in hours, 15 min in 37.5 s.
BUCKETS = 24
_MINORS = 0x10000
_DAY = timedelta(days=1)
#: No period of a quota is longer.
_LONGEST_S = 31 * 86_400


class Penalty(NamedTuple):
    """A rule that has fired.  Times in seconds since the epoch, ``used`` as in Rule.full."""

    since: float
    until: float
    used: int


class Change(NamedTuple):
    """A penalty that begins, or that ends because of ``why``."""

    key: str
    origin: str
    rule: str
    begins: bool
    why: str
    penalty: Penalty
    then: str


class Ring:
    """A sliding window: amounts by time, in buckets."""

    __slots__ = ("buckets", "head", "width_s")

    def __init__(self, window_s: float, head: int = 0, buckets: Iterable[int] = ()) -> None:
        self.width_s = window_s / BUCKETS
        #: Number of the newest bucket, counted from the epoch.
        self.head = head
        self.buckets = array("Q", buckets or bytes(8 * BUCKETS))

    def slide(self, now_s: float) -> None:
        """Forget what is older than the window.

        A clock that was set back lets the window stand still, one that is far off empties it.
        """
        newest = int(now_s // self.width_s)
        ahead = newest - self.head
        if abs(ahead) >= BUCKETS:
            self.clear()
            self.head = newest
        elif ahead > 0:
            for number in range(self.head + 1, newest + 1):
                self.buckets[number % BUCKETS] = 0
            self.head = newest

    def add(self, start_s: float, now_s: float, amount: int) -> None:
        """Enter what was used evenly between two times."""
        self.slide(now_s)
        first = int(start_s // self.width_s)
        if first >= self.head or start_s >= now_s:
            self.buckets[self.head % BUCKETS] += amount
            return
        oldest = max(first, self.head - BUCKETS + 1)
        # Whole numbers up to each border, so that the parts add up to the amount.
        before = self._until(oldest, start_s, now_s, amount) if oldest > first else 0
        for number in range(oldest, self.head + 1):
            upto = self._until(number + 1, start_s, now_s, amount)
            self.buckets[number % BUCKETS] += upto - before
            before = upto

    def _until(self, number: int, start_s: float, now_s: float, amount: int) -> int:
        """How much of ``amount`` was used before bucket ``number`` began."""
        at_s = number * self.width_s
        if at_s >= now_s:
            return amount
        return int(amount * (at_s - start_s) / (now_s - start_s))

    def total(self) -> int:
        """The amount in the window, as of the last ``slide``."""
        return sum(self.buckets)

    def clear(self) -> None:
        """Forget everything."""
        self.buckets = array("Q", bytes(8 * BUCKETS))


@dataclass
class Usage:
    """What one user has used, as far as rules ask; windows by the text of their rule."""

    windows: dict[str, Ring] = field(default_factory=dict)
    period_start: float = 0.0
    quota_up: int = 0
    quota_down: int = 0
    penalties: dict[str, Penalty] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` takes."""
        return {
            "windows": {
                text: [ring.width_s * BUCKETS, ring.head, *ring.buckets]
                for text, ring in self.windows.items()
            },
            "quota": [self.period_start, self.quota_up, self.quota_down],
            "penalties": self.penalties,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usage:
        """Usage as ``to_json`` gave it."""
        period_start, quota_up, quota_down = data["quota"]
        return cls(
            {text: Ring(row[0], row[1], row[2:]) for text, row in data["windows"].items()},
            period_start,
            quota_up,
            quota_down,
            {name: Penalty(*row) for name, row in data["penalties"].items()},
        )


class Row(NamedTuple):
    """A user's usage as it is stored, with the class's counters at that time."""

    key: str
    minor: int
    up_seen: int
    down_seen: int
    usage: Usage


Period = tuple[float, float]


def period(per: str, reset: int, now_s: float, zone: tzinfo | None = None) -> Period:
    """(start, end) of the quota's period around ``now_s``; ``zone`` None is the node's own.

    A period starts at a local time.  One that a change to summer time leaves out is the moment of
    the change, one that comes twice is the first.  A month that has no such day starts on its last.
    """
    today = datetime.fromtimestamp(now_s, zone).date()
    if per == DAY:
        starts = [_moment(today + n * _DAY, reset, zone) for n in (-1, 0, 1, 2)]
    else:
        starts = []
        for months in (-1, 0, 1, 2):
            year, month0 = divmod(today.year * 12 + today.month - 1 + months, 12)
            last = calendar.monthrange(year, month0 + 1)[1]
            starts.append(_moment(date(year, month0 + 1, min(reset, last)), 0, zone))
    start = max(at for at in starts if at <= now_s)
    return start, min(at for at in starts if at > now_s)


def _moment(day: date, hour: int, zone: tzinfo | None) -> float:
    return datetime(day.year, day.month, day.day, hour, tzinfo=zone).timestamp()


class Ledger:
    """The usage of all users with rules.  Pure: the caller reads counters, stores and applies.

    One round: ``open``, ``observe`` for each user, ``close``.
    """

    def __init__(
        self, rows: Iterable[Row] = (), read_s: float = 0.0, zone: tzinfo | None = None
    ) -> None:
        """``rows`` were stored by the last run, ``read_s`` is when their counters were read."""
        self.users: dict[str, Usage] = {}
        #: Users whose usage is not as it was stored.
        self.dirty: set[str] = set()
        self.read_s = read_s
        self._zone = zone
        self._seen = (array("Q", bytes(8 * _MINORS)), array("Q", bytes(8 * _MINORS)))
        # Of other classes the first round does not know what their counters were before.
        self._known: set[int] | None = set()
        for row in rows:
            self.users[row.key] = row.usage
            self._known.add(row.minor)
            self._seen[0][row.minor], self._seen[1][row.minor] = row.up_seen, row.down_seen
        self._start_s = self._now_s = read_s
        self._counters: tuple[Mapping[int, int], Mapping[int, int]] = ({}, {})
        self._periods: dict[Quota, Period] = {}

    def open(self, up: Mapping[int, int], down: Mapping[int, int], now_s: float) -> None:
        """Begin a round: class counters by minor on (IFB, WAN), read at ``now_s``."""
        self._start_s, self._now_s = min(self.read_s or now_s, now_s), now_s
        self._counters = up, down
        self._periods = {}

    def close(self) -> None:
        """End a round: the next one counts from here."""
        for seen, now in zip(self._seen, self._counters, strict=True):
            for minor, value in now.items():
                seen[minor] = value
        self._known = None
        self.read_s = self._now_s
        self._counters = ({}, {})

    def seen(self, minor: int) -> tuple[int, int]:
        """Counters (upload, download) of a class at the last round."""
        return self._seen[0][minor], self._seen[1][minor]

    def _moved(self, minor: int | None) -> tuple[int, int]:
        """Bytes (upload, download) of a class since the last round."""
        if minor is None or (self._known is not None and minor not in self._known):
            return 0, 0
        moved = []
        for seen, now in zip(self._seen, self._counters, strict=True):
            before, value = seen[minor], now.get(minor)
            if value is None:
                moved.append(0)
            else:
                moved.append(value - before if value >= before else value)
        return moved[0], moved[1]

    def observe(
        self, key: str, minor: int | None, terms: Terms, limits: Limits, held: bool = False
    ) -> list[Change]:
        """What a round means for one user; ``minor`` None: the user has no class now.

        ``terms`` and ``limits`` are those of the user's own plan; ``held``: an override by hand
        is in force.
        """
        usage = self.users.get(key)
        up, down = self._moved(minor) if terms else (0, 0)
        if usage is None:
            if not up and not down:
                return []
            usage = self.users[key] = Usage()
        elif not (up or down or usage.penalties):
            return []
        self.dirty.add(key)
        changes: list[Change] = []
        self._punish(key, usage, terms, limits, (up, down), held, changes)
        self._charge(key, usage, terms.quota, (up, down), changes)
        return changes

    def _punish(
        self,
        key: str,
        usage: Usage,
        terms: Terms,
        limits: Limits,
        moved: tuple[int, int],
        held: bool,
        changes: list[Change],
    ) -> None:
        """The plan's rules: end penalties, fill windows, begin penalties."""
        now_s = self._now_s
        # What was moved since the last round was moved under these.
        under = dict(usage.penalties)
        rules = {rule.text: rule for rule in terms.rules}
        for text, penalty in under.items():
            if text == QUOTA:
                continue
            rule = rules.get(text)
            if rule is None:
                why = "the plan has no such rule any more"
            elif now_s >= penalty.until:
                why = "its time is up"
            else:
                # Longer only if the clock was set back.
                until = min(penalty.until, now_s + rule.for_s)
                usage.penalties[text] = penalty._replace(until=until)
                continue
            del usage.penalties[text]
            then = rule.then if rule else ""
            changes.append(Change(key, "fair_use", text, False, why, penalty, then))
        for text in usage.windows.keys() - rules.keys():
            del usage.windows[text]
        for text, rule in rules.items():
            if text in under or (rule.kind == RATE and (under or held)):
                continue
            amount = self._amount(rule, limits, moved)
            if not amount:
                continue
            ring = usage.windows.get(text)
            if ring is None:
                ring = usage.windows[text] = Ring(rule.window_s)
            ring.add(self._start_s, now_s, amount)
            used = ring.total()
            if used < rule.full:
                continue
            del usage.windows[text]
            penalty = usage.penalties[text] = Penalty(now_s, now_s + rule.for_s, used)
            changes.append(Change(key, "fair_use", text, True, "", penalty, rule.then))

    def _amount(self, rule: Rule, limits: Limits, moved: tuple[int, int]) -> int:
        """What the last interval adds to a rule's window: bytes, or ms at the limit."""
        if rule.kind == VOLUME:
            return _directed(rule.direction, moved)
        limit_bps = limits.upload_bps if rule.direction == UPLOAD else limits.download_bps
        if limit_bps is None:
            return 0  # there is no rate that would be much for this user
        spent_ms = _directed(rule.direction, moved) * 8_000 // limit_bps
        return min(spent_ms, int((self._now_s - self._start_s) * 1_000))

    def _charge(
        self,
        key: str,
        usage: Usage,
        quota: Quota | None,
        moved: tuple[int, int],
        changes: list[Change],
    ) -> None:
        """The plan's quota: reset on time, count, begin or end its penalty."""
        penalty = usage.penalties.get(QUOTA)
        if quota is None:
            usage.period_start, usage.quota_up, usage.quota_down = 0.0, 0, 0
            if penalty:
                del usage.penalties[QUOTA]
                why = "the plan has no quota any more"
                changes.append(Change(key, "quota", "quota", False, why, penalty, ""))
            return
        start_s, end_s = self._period(quota)
        share = 1.0
        why = "its limit is higher now"
        # A clock that is set back must not give a second quota; nor one that was far ahead none.
        if start_s > usage.period_start or usage.period_start > self._now_s + 86_400:
            usage.period_start, usage.quota_up, usage.quota_down = start_s, 0, 0
            why = "it was reset"
            if self._start_s < start_s:
                share = (self._now_s - start_s) / (self._now_s - self._start_s)
        usage.quota_up += int(moved[0] * share)
        usage.quota_down += int(moved[1] * share)
        used = _directed(quota.direction, (usage.quota_up, usage.quota_down))
        if used > quota.limit_bytes:
            since_s = penalty.since if penalty else self._now_s
            now = usage.penalties[QUOTA] = Penalty(since_s, end_s, used)
            if penalty is None:
                changes.append(Change(key, "quota", quota.text, True, "", now, quota.then))
        elif penalty:
            del usage.penalties[QUOTA]
            changes.append(Change(key, "quota", quota.text, False, why, penalty, quota.then))

    def _period(self, quota: Quota) -> Period:
        found = self._periods.get(quota)
        if found is None:
            found = period(quota.per, quota.reset, self._now_s, self._zone)
            self._periods[quota] = found
        return found

    def forget_idle(self) -> list[str]:
        """Drop users of whom nothing is remembered any more; returns their keys."""
        gone = []
        for key, usage in self.users.items():
            for text, ring in list(usage.windows.items()):
                ring.slide(self.read_s)
                if not ring.total():
                    del usage.windows[text]
            if self.read_s - usage.period_start > _LONGEST_S:
                usage.quota_up = usage.quota_down = 0
            if not (usage.windows or usage.penalties or usage.quota_up or usage.quota_down):
                gone.append(key)
        for key in gone:
            del self.users[key]
        self.dirty.difference_update(gone)
        return gone


def _directed(direction: str, moved: tuple[int, int]) -> int:
    if direction == UPLOAD:
        return moved[0]
    return moved[1] if direction == DOWNLOAD else moved[0] + moved[1]


def in_force(
    usage: Usage, terms: Terms, limits_of: Callable[[str], Limits]
) -> tuple[str, float, str, str] | None:
    """(plan or BLOCKED, until, why, origin) of the hardest penalty a user has; None without one.

    ``limits_of`` gives the limits of a plan.
    """
    found = []
    for rule in terms.rules:
        penalty = usage.penalties.get(rule.text)
        if penalty:
            found.append((rule.then, penalty.until, rule.text, "fair_use"))
    if terms.quota and QUOTA in usage.penalties:
        penalty = usage.penalties[QUOTA]
        found.append((terms.quota.then, penalty.until, terms.quota.text, "quota"))

    def hardness(item: tuple[str, float, str, str]) -> tuple[float, float]:
        limits = limits_of(item[0])
        speeds = (limits.upload_bps, limits.download_bps)
        return sum(float("inf") if bps is None else bps for bps in speeds), -item[1]

    return min(found, key=hardness, default=None)
