"""User to minor: stable, collision free, reused only after quarantine.

A 16-bit hash of the email collides with 50 % probability at 300 users; this is a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import Exhausted
from .htb import FIRST_USER_MINOR, LAST_USER_MINOR, usable_minor

#: Owner of the class that the distrusted flows of one address share.  An email has no control
#: characters, so that the two kinds of owner never meet.
RESTRICTED = "\x01"

ACTIVE = "active"
#: The class is idle, but flows may still bear its mark.
QUARANTINE = "quarantine"
#: The class waits for its next owner.
PARKED = "parked"


@dataclass(slots=True)
class Owner:
    """Who has a minor.  Times in seconds since the epoch, counters in bytes.

    ``since``: when the present ownership began; ``moved``: when the counters were last seen to
    move; ``up_seen`` and ``down_seen``: the class counters at that time; ``up_bps`` and
    ``down_bps``: the lowest limits that were claimed for a restricted class, in bit/s (None: the
    default is the lowest).
    """

    key: str
    minor: int
    state: str = ACTIVE
    since: float = 0.0
    moved: float = 0.0
    up_seen: int = 0
    down_seen: int = 0
    up_bps: int | None = None
    down_bps: int | None = None


class Minors:
    """The table of owners.  Pure: the caller persists what the methods return."""

    def __init__(self, major: int, owners: Iterable[Owner] = ()) -> None:
        """``owners`` come from the last run; ``major`` is the root's handle."""
        self.major = major
        self.by_key: dict[str, Owner] = {}
        self.by_minor: dict[int, Owner] = {}
        self._parked: dict[int, None] = {}
        self._next = FIRST_USER_MINOR
        for owner in sorted(owners, key=lambda owner: owner.moved):
            # After a change of the handle one or two minors cannot be had any more.
            if usable_minor(major, owner.minor):
                self._enter(owner)

    def _enter(self, owner: Owner) -> None:
        self.by_key[owner.key] = owner
        self.by_minor[owner.minor] = owner
        if owner.state == PARKED:
            self._parked[owner.minor] = None
        self._next = max(self._next, owner.minor + 1)

    def take(self, key: str, now_s: float) -> tuple[Owner, Owner | None]:
        """The owner record of ``key``, made active; and the record it displaced, if any.

        An owner that comes back gets its own minor, then the longest parked one is reused, then
        a fresh one.  Raises Exhausted when all 65,530 are taken.
        """
        owner = self.by_key.get(key)
        if owner is not None:
            if owner.state != ACTIVE:
                self._parked.pop(owner.minor, None)
                owner.state, owner.since, owner.moved = ACTIVE, now_s, now_s
            return owner, None
        if self._parked:
            minor = next(iter(self._parked))
            old = self.by_minor[minor]
            self.forget(old)
            owner = Owner(key, minor, ACTIVE, now_s, now_s, old.up_seen, old.down_seen)
            self._enter(owner)
            return owner, old
        owner = Owner(key, self._fresh(), ACTIVE, now_s, now_s)
        self._enter(owner)
        return owner, None

    def _fresh(self) -> int:
        while self._next <= LAST_USER_MINOR:
            minor = self._next
            self._next += 1
            if usable_minor(self.major, minor) and minor not in self.by_minor:
                return minor
        for minor in range(FIRST_USER_MINOR, LAST_USER_MINOR + 1):
            if usable_minor(self.major, minor) and minor not in self.by_minor:
                return minor
        raise Exhausted(
            f"all {len(self.by_minor)} minors are taken; new users share the unclassified class "
            "until idle ones are collected"
        )

    def forget(self, owner: Owner) -> None:
        """Drop an owner; its minor is free."""
        self.by_key.pop(owner.key, None)
        self.by_minor.pop(owner.minor, None)
        self._parked.pop(owner.minor, None)
