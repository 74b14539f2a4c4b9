"""What is shown of a user: figures of one moment, the same for ``status``, ``top`` and programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from .health.holding import KINDS, Passing, holds
from .htb import CEIL_MINOR, ClassState, format_classid
from .layout import Layout
from .owners import ACTIVE, RESTRICTED_KEY, Owner
from .policy.overrides import OPERATOR, Override, counting

#: The directions, in the order of (IFB, WAN).
UPLOAD, DOWNLOAD = 0, 1
DIRECTIONS = ("upload", "download")
#: What users may be sorted by: the figures that are added up, the largest first; none for names.
SORTS: dict[str, tuple[str, ...]] = {
    "rate": ("up_rate_bps", "down_rate_bps"),
    "up": ("up_rate_bps",),
    "down": ("down_rate_bps",),
    "full": ("share",),
    "bytes": ("up_bytes", "down_bytes"),
    "flows": ("flows",),
    "addresses": ("addresses",),
    "drops": ("drops",),
    "name": (),
}
_DIGITS = re.compile(r"[0-9]{1,999}")
_NONE: dict[int, Any] = {}
T = TypeVar("T")


@dataclass
class Moment:
    """What was read of all classes twice, and of their connections once."""

    major: int
    #: {minor: class} on (IFB, WAN).
    classes: tuple[Mapping[int, ClassState], Mapping[int, ClassState]] = (_NONE, _NONE)
    #: {minor: bytes sent} on (IFB, WAN), twice, and the time between; 0: there are no rates yet.
    before: tuple[Mapping[int, int], Mapping[int, int]] = (_NONE, _NONE)
    after: tuple[Mapping[int, int], Mapping[int, int]] = (_NONE, _NONE)
    seconds: float = 0.0
    #: {minor: live connections}, {minor: addresses that they come from; an IPv6 /64 is one}.
    flows: Mapping[int, int] = field(default_factory=dict)
    addresses: Mapping[int, int] = field(default_factory=dict)
    #: Users from whose addresses there are restricted connections, too.
    in_doubt: frozenset[int] = frozenset()
    #: {email: the penalty that is in force}.
    penalties: Mapping[str, str] = field(default_factory=dict)
    #: Of how many trees; ``major`` is the first one's.
    trees: int = 1

    @property
    def layout(self) -> Layout:
        """Which class is in which tree."""
        return Layout(self.major, self.trees)

    def moved(self, direction: int, minor: int) -> int:
        """Bytes between the two readings; 0 of a class that was made anew meanwhile."""
        before = self.before[direction].get(minor)
        after = self.after[direction].get(minor)
        return 0 if before is None or after is None or after < before else after - before

    def rate_bps(self, direction: int, minor: int) -> int:
        """The rate of a class between the two readings."""
        return round(self.moved(direction, minor) * 8 / self.seconds) if self.seconds else 0

    def passing(self, direction: int, minor: int) -> Passing | None:
        """A class at work; None if there is none."""
        state = self.classes[direction].get(minor)
        if state is None:
            return None
        rate_bps = self.rate_bps(direction, minor)
        return Passing(rate_bps, state.params.ceil_bps, state.backlog_bytes)


class Figures:
    """One user's, or another owner's of a class; ``name`` as people read it."""

    __slots__ = ("moment", "name", "owner")

    def __init__(self, moment: Moment, owner: Owner, name: str) -> None:
        self.moment, self.owner, self.name = moment, owner, name

    @property
    def up_rate_bps(self) -> int:
        return self.moment.rate_bps(UPLOAD, self.owner.minor)

    @property
    def down_rate_bps(self) -> int:
        return self.moment.rate_bps(DOWNLOAD, self.owner.minor)

    def ceil_bps(self, direction: int) -> int | None:
        """The limit that the kernel has; None without a class."""
        state = self.moment.classes[direction].get(self.owner.minor)
        return state.params.ceil_bps if state else None

    @property
    def share(self) -> float:
        """How full the fuller direction is: 0 to 1, a burst may be above."""
        shares = [0.0]
        for direction in (UPLOAD, DOWNLOAD):
            ceil_bps = self.ceil_bps(direction)
            if ceil_bps:
                shares.append(self.moment.rate_bps(direction, self.owner.minor) / ceil_bps)
        return max(shares)

    @property
    def up_bytes(self) -> int:
        return self._bytes(UPLOAD)

    @property
    def down_bytes(self) -> int:
        return self._bytes(DOWNLOAD)

    def _bytes(self, direction: int) -> int:
        state = self.moment.classes[direction].get(self.owner.minor)
        return state.sent_bytes if state else 0

    @property
    def drops(self) -> int:
        both = (classes.get(self.owner.minor) for classes in self.moment.classes)
        return sum(state.drops for state in both if state is not None)

    @property
    def flows(self) -> int:
        return self.moment.flows.get(self.owner.minor, 0)

    @property
    def addresses(self) -> int:
        return self.moment.addresses.get(self.owner.minor, 0)

    def held(self, direction: int) -> str:
        """What holds them in a direction, a kind of `core.health.holding`."""
        moment, minor = self.moment, self.owner.minor
        user, node = moment.passing(direction, minor), moment.passing(direction, CEIL_MINOR)
        if user is None or node is None:
            return ""
        restricted = self.owner.key.startswith(RESTRICTED_KEY) or minor in moment.in_doubt
        return holds(user, node, moment.penalties.get(self.owner.key, ""), restricted).kind

    @property
    def held_by(self) -> str:
        """The more telling of both directions."""
        return min(self.held(UPLOAD), self.held(DOWNLOAD), key=KINDS.index)

    def to_json(self) -> dict[str, Any]:
        """As ``status --json`` has it."""
        return {
            "email": self.name,
            "class": format_classid(self.moment.layout.mark(self.owner.minor)),
            "upload_bps": self.ceil_bps(UPLOAD),
            "download_bps": self.ceil_bps(DOWNLOAD),
            "flows": self.flows,
            "addresses": self.addresses,
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
            "up_rate_bps": self.up_rate_bps,
            "down_rate_bps": self.down_rate_bps,
            "share": round(self.share, 3),
            "drops": self.drops,
            "held_by": self.held_by,
        }


def select(
    moment: Moment, owners: Iterable[tuple[Owner, str]], patterns: Iterable[str] = ()
) -> list[Figures]:
    """Figures of the active ones among ``owners``, each with its name, that a pattern fits."""
    wanted = list(patterns)
    return [
        Figures(moment, owner, name)
        for owner, name in owners
        if owner.state == ACTIVE and (not wanted or any(fnmatchcase(name, p) for p in wanted))
    ]


def ordered(found: Iterable[T], sort: str, get: Callable[[T, str], Any] = getattr) -> list[T]:
    """By one of `SORTS`, `Figures` or what ``get`` reads; equals stay as they come: by name."""
    keys = SORTS[sort]
    return sorted(found, key=lambda one: -sum(get(one, key) for key in keys))


def penalties(overrides: Iterable[Override], now_s: float) -> dict[str, str]:
    """{email: why} of those who are under a penalty, and not under a person's order."""
    by_email: dict[str, list[Override]] = {}
    for override in overrides:
        by_email.setdefault(override.email, []).append(override)
    found = {email: penalty(counting(all_, now_s)) for email, all_ in by_email.items()}
    return {email: why for email, why in found.items() if why}


def penalty(deciding: Iterable[Override]) -> str:
    """The penalty among the overrides that count for a user; empty if there is none."""
    return next((o.why or o.origin for o in deciding if o.origin != OPERATOR), "")


def natural(text: str) -> str:
    """A key that sorts user2 before user10: a number stands after how many digits it has."""
    return _DIGITS.sub(_by_length, text)


def _by_length(found: re.Match[str]) -> str:
    digits = found[0].lstrip("0")
    return f"\0{chr(len(digits))}{digits}"
