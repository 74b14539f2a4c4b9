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

Longer than 400 lines: the rules of a user share windows, penalties and one look at the counters.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import tzinfo
from typing import Any, NamedTuple

from ..units import format_volume
from .model import Limits
from .periods import CELLS, Period, Window, period
from .terms import DOWNLOAD, RATE, UPLOAD, VOLUME, FairUseRule, Quota, Terms

#: Name of the quota among a user's penalties, and the origin of its override.
QUOTA = "quota"

_MINORS = 0x10000
_LONGEST_S = 31 * 86_400


class Penalty(NamedTuple):
    """A rule that has fired.  Times in seconds since the epoch, ``used`` as in FairUseRule.full."""

    since: float
    until: float
    used: int


class Change(NamedTuple):
    """A penalty that begins, or one that ends.

    ``why``: what was used, or why it ends.  ``origin`` names its override; that leads to the plan
    ``then`` (or BLOCKED, or nowhere, where the rule is gone).
    """

    key: str
    origin: str
    begins: bool
    why: str
    penalty: Penalty
    then: str


class Usage:
    """What one user has used, as far as ``terms`` ask: a window for each rule, and the quota.

    ``penalties`` by the text of their rule, or QUOTA.
    """

    __slots__ = ("cells", "penalties", "period_start", "quota_down", "quota_up", "terms")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.cells = array("I", bytes(4 * CELLS * len(terms.rules)))
        self.period_start, self.quota_up, self.quota_down = 0.0, 0, 0
        self.penalties: dict[str, Penalty] = {}

    def window(self, number: int) -> Window:
        """The window of the ``number``-th rule."""
        return Window(self.terms.rules[number], self.cells, number)

    def in_force(self, key: str, now_s: float) -> Iterator[Change]:
        """The beginnings of the penalties that are not over; ``key`` is the user's."""
        for text, penalty in self.penalties.items():
            rule = self.terms.quota if text == QUOTA else self.terms.rule(text)
            if rule and penalty.until > now_s:
                origin = QUOTA if text == QUOTA else rule_origin(text)
                yield Change(key, origin, True, rule.amount(penalty.used), penalty, rule.then)

    def adapt(self, terms: Terms) -> None:
        """Other terms: windows of rules that stay, stay."""
        data = self.to_json()
        self.terms = terms
        self._read(data)

    def forgive(self) -> None:
        """What was used until now counts no more, and no penalty stands."""
        self.cells = array("I", bytes(4 * len(self.cells)))
        self.quota_up = self.quota_down = 0
        self.penalties.clear()

    def join(self, other: Usage, now_s: float) -> None:
        """Add what another user has used, of the same terms: they are one from now on."""
        for number in range(len(self.terms.rules)):
            self.window(number).join(other.window(number), now_s)
        if other.period_start > self.period_start:
            self.period_start, self.quota_up, self.quota_down = other.period_start, 0, 0
        if other.period_start == self.period_start:
            self.quota_up += other.quota_up
            self.quota_down += other.quota_down
        for text, penalty in other.penalties.items():
            mine = self.penalties.get(text)
            if mine is None or mine.until < penalty.until:
                self.penalties[text] = penalty

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` takes."""
        windows = {}
        for number, rule in enumerate(self.terms.rules):
            cells = self.cells[number * CELLS : (number + 1) * CELLS]
            if any(cells[1:]):
                windows[rule.text] = cells.tolist()
        return {
            "windows": windows,
            "quota": [self.period_start, self.quota_up, self.quota_down],
            "penalties": self.penalties,
        }

    @classmethod
    def from_json(cls, terms: Terms, data: Mapping[str, Any]) -> Usage:
        """Usage as ``to_json`` gave it."""
        usage = cls(terms)
        usage._read(data)
        return usage

    def _read(self, data: Mapping[str, Any]) -> None:
        empty = [0] * CELLS
        self.cells = array("I")
        for rule in self.terms.rules:
            self.cells.extend(data["windows"].get(rule.text, empty))
        self.period_start, self.quota_up, self.quota_down = data["quota"]
        self.penalties = {name: Penalty(*row) for name, row in data["penalties"].items()}


class Row(NamedTuple):
    """A user's usage as it is stored, with the class's counters at that time."""

    key: str
    minor: int
    up_seen: int
    down_seen: int
    usage: Usage


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
        # What restricted classes have moved that is nobody's yet, and what came of it to whom.
        self._doubted: dict[int, tuple[int, int]] = {}
        self._owed: dict[str, tuple[int, int]] = {}
        self._periods: dict[Quota, Period] = {}
        # Who was let off in this round, or before it began.
        self._pardoned: set[str] = set()

    def open(self, up: Mapping[int, int], down: Mapping[int, int], now_s: float) -> None:
        """Begin a round: class counters by minor on (IFB, WAN), read at ``now_s``."""
        self._start_s, self._now_s = min(self.read_s or now_s, now_s), now_s
        self._counters = up, down
        self._periods = {}

    def settle(self, doubted: Iterable[int], left: Mapping[int, Collection[str]]) -> None:
        """What flows moved while they were in doubt counts for whoever has them in the end.

        ``doubted`` are the minors of restricted classes; ``left`` says which users' flows have
        left which of them since the last round: they share what it has moved until now.
        """
        before, self._doubted = self._doubted, {}
        for minor in doubted:
            up, down = before.get(minor, (0, 0))
            more_up, more_down = self._moved(minor)
            self._doubted[minor] = up + more_up, down + more_down
        for minor, keys in left.items():
            up, down = self._doubted.pop(minor, (0, 0))
            for key in keys:
                owed_up, owed_down = self._owed.get(key, (0, 0))
                self._owed[key] = owed_up + up // len(keys), owed_down + down // len(keys)

    def close(self) -> None:
        """End a round: the next one counts from here."""
        for seen, now in zip(self._seen, self._counters, strict=True):
            for minor, value in now.items():
                seen[minor] = value
        self._known = None
        self._pardoned.clear()
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
        owed = self._owed.pop(key, (0, 0))
        moved = self._moved(minor) if terms else (0, 0)
        if terms:
            moved = moved[0] + owed[0], moved[1] + owed[1]
        if key in self._pardoned:
            moved = 0, 0
        if usage is None:
            if moved == (0, 0):
                return []
            usage = self.users[key] = Usage(terms)
        elif moved == (0, 0) and not usage.penalties:
            return []
        if usage.terms is not terms:
            usage.adapt(terms)
        self.dirty.add(key)
        # What was moved since the last round was moved under these.
        under = frozenset(usage.penalties)
        changes = list(self._release(key, usage)) if under else []
        for number, rule in enumerate(terms.rules):
            if under and (rule.kind == RATE or rule.text in under):
                continue
            if held and rule.kind == RATE:
                continue
            amount = self._amount(rule, limits, moved)
            if amount:
                changes += self._enter(key, usage, number, amount)
        if terms.quota:
            changes += self._charge(key, usage, terms.quota, moved)
        return changes

    def _release(self, key: str, usage: Usage) -> Iterator[Change]:
        """End penalties whose time is up, and those that nothing stands for any more."""
        for text, penalty in list(usage.penalties.items()):
            rule = usage.terms.rule(text)
            if text == QUOTA and usage.terms.quota:
                continue
            if rule is None:
                why = f"the plan has no such {'quota' if text == QUOTA else 'rule'} any more"
            elif self._now_s >= penalty.until:
                why = "its time is up"
            else:
                # Longer only if the clock was set back.
                until = min(penalty.until, self._now_s + rule.for_s)
                usage.penalties[text] = penalty._replace(until=until)
                continue
            del usage.penalties[text]
            origin = QUOTA if text == QUOTA else rule_origin(text)
            yield Change(key, origin, False, why, penalty, rule.then if rule else "")

    def _enter(self, key: str, usage: Usage, number: int, amount: int) -> Iterator[Change]:
        """Fill a window; a penalty begins if that is too much."""
        rule, window, now_s = usage.terms.rules[number], usage.window(number), self._now_s
        window.add(self._start_s, now_s, amount)
        used = window.total(now_s)
        if used >= rule.full:
            window.clear()
            penalty = usage.penalties[rule.text] = Penalty(now_s, now_s + rule.for_s, used)
            origin = rule_origin(rule.text)
            yield Change(key, origin, True, rule.amount(used), penalty, rule.then)

    def _amount(self, rule: FairUseRule, limits: Limits, moved: tuple[int, int]) -> int:
        """What the last interval adds to a rule's window: bytes, or ms at the limit."""
        if rule.kind == VOLUME:
            return _directed(rule.direction, moved)
        limit_bps = limits.upload_bps if rule.direction == UPLOAD else limits.download_bps
        if limit_bps is None:
            return 0  # there is no rate that would be much for this user
        spent_ms = _directed(rule.direction, moved) * 8_000 // limit_bps
        return min(spent_ms, int((self._now_s - self._start_s) * 1_000))

    def _charge(
        self, key: str, usage: Usage, quota: Quota, moved: tuple[int, int]
    ) -> Iterator[Change]:
        """The plan's quota: reset on time, count, begin or end its penalty."""
        penalty = usage.penalties.get(QUOTA)
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
            # A longer one is told, too: its override would be over before it.
            if penalty is None or penalty.until != end_s:
                yield Change(key, QUOTA, True, quota.amount(used), now, quota.then)
        elif penalty:
            del usage.penalties[QUOTA]
            yield Change(key, QUOTA, False, why, penalty, quota.then)

    def _period(self, quota: Quota) -> Period:
        found = self._periods.get(quota)
        if found is None:
            found = period(quota.per, quota.reset, self._now_s, self._zone)
            self._periods[quota] = found
        return found

    def forgive(self, key: str) -> None:
        """Let a user off; what the next round brings was mostly moved before and is left out."""
        self._owed.pop(key, None)
        self._pardoned.add(key)
        if usage := self.users.get(key):
            usage.forgive()
            self.dirty.add(key)

    def forget_idle(self) -> list[str]:
        """Drop users of whom nothing is remembered any more; returns their keys."""
        gone = []
        for key, usage in self.users.items():
            # No period of a quota is longer.
            if self.read_s - usage.period_start > _LONGEST_S:
                usage.quota_up = usage.quota_down = 0
            rules = range(len(usage.terms.rules))
            if not (
                usage.penalties
                or usage.quota_up
                or usage.quota_down
                or any(usage.window(number).total(self.read_s) for number in rules)
            ):
                gone.append(key)
        for key in gone:
            del self.users[key]
        self.dirty.difference_update(gone)
        return gone


def _directed(direction: str, moved: tuple[int, int]) -> int:
    if direction == UPLOAD:
        return moved[0]
    return moved[1] if direction == DOWNLOAD else moved[0] + moved[1]


def rule_origin(text: str) -> str:
    """The origin of the overrides of a rule: a user may have several penalties at once."""
    return f"fair_use: {text}"


def is_automatic(origin: str) -> bool:
    """Whether overrides of this origin are the penalties of this module."""
    return origin == QUOTA or origin.startswith("fair_use: ")


class Level(NamedTuple):
    """How far a user is with a rule or the quota, for people; ``share`` is 1 when it is full."""

    rule: str
    used: str
    share: float
    until: float | None


def levels(usage: Usage, now_s: float, zone: tzinfo | None = None) -> list[Level]:
    """How far a user is with everything that the plan says.  Slides the windows."""
    found = []
    for number, rule in enumerate(usage.terms.rules):
        used = usage.window(number).total(now_s)
        penalty = usage.penalties.get(rule.text)
        until_s = penalty.until if penalty else None
        found.append(Level(rule.text, rule.amount(used), used / rule.full, until_s))
    if quota := usage.terms.quota:
        current = usage.period_start >= period(quota.per, quota.reset, now_s, zone)[0]
        moved = (usage.quota_up, usage.quota_down) if current else (0, 0)
        used = _directed(quota.direction, moved)
        penalty = usage.penalties.get(QUOTA)
        until_s = penalty.until if penalty else None
        share = used / quota.limit_bytes
        found.append(Level(quota.text, format_volume(used), share, until_s))
    return found
