"""What a plan of ``policy.yml`` says about use: its keys ``fair_use`` and ``quota``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..document import Document
from ..units import format_duration, format_volume, parse_duration, parse_volume

VOLUME, RATE = "volume", "rate"
BOTH, UPLOAD, DOWNLOAD = "both", "upload", "download"
DAY, MONTH = "day", "month"
#: Where a penalty leads that is no plan.
BLOCKED, CUT = "blocked", "cut"
#: What becomes of connections above their number: those idle for longest end, or the new ones do.
EVICT, REFUSE = "evict", "refuse"
#: What becomes of a device too many, beside REFUSE: its connections share a slow class.
RESTRICT = "restrict"

#: What a plan may say of this.
KEYS = ("fair_use", "quota")

_MIN_S, _MAX_S = 60, 31 * 86_400
_MIN_BYTES, _MAX_BYTES = 10**6, 10**15
_MIN_SHARE, _MAX_SHARE = 10, 99


class FairUseRule(NamedTuple):
    """One entry of a plan's ``fair_use``.

    ``threshold`` is in bytes (VOLUME) or percent of the user's limit (RATE, one direction).
    """

    kind: str
    threshold: int
    window_s: int
    direction: str
    then: str
    for_s: int

    @property
    def text(self) -> str:
        """The condition, for people; it identifies the rule: a changed one is a new one."""
        window = format_duration(self.window_s)
        if self.kind == RATE:
            return f"above {self.threshold}% of the {self.direction} limit during {window}"
        of = "" if self.direction == BOTH else f" of {self.direction}"
        return f"more than {format_volume(self.threshold)}{of} within {window}"

    @property
    def full(self) -> int:
        """What the window holds when the rule fires: bytes, or ms at the limit."""
        if self.kind == RATE:
            return self.window_s * self.threshold * 10
        return self.threshold + 1

    def amount(self, used: int) -> str:
        """What a window holds, for people."""
        if self.kind == RATE:
            return f"{format_duration(used // 1_000)} at the limit"
        return format_volume(used)


class Quota(NamedTuple):
    """A plan's ``quota``; ``reset`` is the hour of the day or the day of the month."""

    limit_bytes: int
    per: str
    reset: int
    then: str
    direction: str

    @property
    def text(self) -> str:
        """The quota, for people."""
        of = "" if self.direction == BOTH else f" of {self.direction}"
        return f"quota of {format_volume(self.limit_bytes)}{of} per {self.per}"

    def amount(self, used: int) -> str:
        """What has been used, for people."""
        return f"{format_volume(used)} with a {self.text}"


@dataclass(frozen=True)
class Terms:
    """What a plan says about use."""

    rules: tuple[FairUseRule, ...] = ()
    quota: Quota | None = None

    def rule(self, text: str) -> FairUseRule | None:
        """The rule of this text, if there is one."""
        return next((rule for rule in self.rules if rule.text == text), None)

    def __bool__(self) -> bool:
        return bool(self.rules or self.quota)

    @property
    def sample_s(self) -> float:
        """How often counters must be read for these terms: the shortest window says."""
        shortest = min((rule.window_s for rule in self.rules), default=_MAX_S)
        return min(max(shortest / 15, 5.0), 60.0)


def parse_terms(
    doc: Document, path: tuple[str, ...], entry: Mapping[str, Any], plans: Collection[str]
) -> Terms:
    """Terms from the keys KEYS of the plan at ``path``, of which others are left alone.

    ``plans`` are the names a rule may lead to.  Raises ConfigError.
    """
    rules: list[FairUseRule] = []
    listed = entry.get("fair_use", [])
    if not isinstance(listed, list):
        raise doc.fail((*path, "fair_use"), "must be a list of rules")
    for number, value in enumerate(listed):
        here = (*path, "fair_use", str(number))
        for rule in _rules(doc, here, value, plans):
            if rule.text in {known.text for known in rules}:
                raise doc.fail(here, f"stands twice: {rule.text}")
            rules.append(rule)
    quota = None
    if "quota" in entry:
        quota = _quota(doc, (*path, "quota"), entry["quota"], plans)
    return Terms(tuple(rules), quota)


def _rules(
    doc: Document, path: tuple[str, ...], value: Any, plans: Collection[str]
) -> list[FairUseRule]:
    """One entry; one about rates in both directions is two rules."""
    keys = ("more_than", "within", "above", "during", "direction", "then", "for")
    entry = doc.check_keys(path, value, keys)
    pairs = [("more_than", "within"), ("above", "during")]
    asked = [pair for pair in pairs if pair[0] in entry or pair[1] in entry]
    if len(asked) != 1 or not set(asked[0]) <= entry.keys():
        raise doc.fail(path, "needs either more_than and within, or above and during")
    what, window = asked[0]
    window_s = _span(doc, (*path, window), entry[window])
    direction = _direction(doc, path, entry)
    then = _then(doc, path, entry, plans)
    if "for" not in entry:
        raise doc.fail((*path, "for"), "is missing: how long the penalty lasts, such as 1h")
    for_s = _span(doc, (*path, "for"), entry["for"])
    if what == "more_than":
        size = _volume(doc, (*path, what), entry[what])
        return [FairUseRule(VOLUME, size, window_s, direction, then, for_s)]
    share = str(entry[what]).strip()
    number = share[:-1].rstrip()
    if (
        not share.endswith("%")
        or not number.isdecimal()
        or (not _MIN_SHARE <= int(number) <= _MAX_SHARE)
    ):
        raise doc.fail(
            (*path, what),
            f"{entry[what]!r} is not a share of the limit; allowed: {_MIN_SHARE}% to {_MAX_SHARE}%",
        )
    directions = (UPLOAD, DOWNLOAD) if direction == BOTH else (direction,)
    return [FairUseRule(RATE, int(number), window_s, one, then, for_s) for one in directions]


def _quota(doc: Document, path: tuple[str, ...], value: Any, plans: Collection[str]) -> Quota:
    entry = doc.check_keys(path, value, ("limit", "per", "reset", "then", "direction"))
    if "limit" not in entry:
        raise doc.fail((*path, "limit"), "is missing: an amount of data such as 100GB")
    per = entry.get("per", MONTH)
    if per not in (DAY, MONTH):
        raise doc.fail((*path, "per"), f"{per!r} is not one of: {DAY}, {MONTH}")
    low, high, what = (0, 23, "an hour") if per == DAY else (1, 31, "a day of the month")
    reset = entry.get("reset", low)
    if isinstance(reset, bool) or not isinstance(reset, int) or not low <= reset <= high:
        raise doc.fail((*path, "reset"), f"{reset!r} is not {what} ({low} to {high})")
    return Quota(
        _volume(doc, (*path, "limit"), entry["limit"]),
        per,
        reset,
        _then(doc, path, entry, plans),
        _direction(doc, path, entry),
    )


def _then(
    doc: Document, path: tuple[str, ...], entry: Mapping[str, Any], plans: Collection[str]
) -> str:
    allowed = ", ".join([*plans, BLOCKED, CUT])
    if "then" not in entry:
        raise doc.fail((*path, "then"), f"is missing; allowed: {allowed}")
    # A plan's name may look like a number to YAML.
    then = str(entry["then"])
    if then not in (*plans, BLOCKED, CUT):
        raise doc.fail((*path, "then"), f"{then!r} is no other plan; allowed: {allowed}")
    return then


def _direction(doc: Document, path: tuple[str, ...], entry: Mapping[str, Any]) -> str:
    direction = entry.get("direction", BOTH)
    if direction not in (BOTH, UPLOAD, DOWNLOAD):
        allowed = f"{BOTH}, {UPLOAD}, {DOWNLOAD}"
        raise doc.fail((*path, "direction"), f"{direction!r} is not one of: {allowed}")
    return str(direction)


def _span(doc: Document, path: tuple[str, ...], value: Any) -> int:
    try:
        seconds = parse_duration(str(value))
    except ValueError as error:
        raise doc.fail(path, str(error)) from error
    if not _MIN_S <= seconds <= _MAX_S:
        raise doc.fail(path, f"{value!r} is out of range; allowed: 1min to 31d")
    return seconds


def _volume(doc: Document, path: tuple[str, ...], value: Any) -> int:
    try:
        size = parse_volume(value)
    except ValueError as error:
        raise doc.fail(path, str(error)) from error
    if not _MIN_BYTES <= size <= _MAX_BYTES:
        raise doc.fail(path, f"{value!r} is out of range; allowed: 1MB to 1000TB")
    return size
