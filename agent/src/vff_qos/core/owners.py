"""User to minor: stable, collision free, reused only after quarantine.

A 16-bit hash of the email collides with 50 % probability at 300 users; this is a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import Exhausted
from .htb import (
    FIRST_USER_MINOR,
    LAST_USER_MINOR,
    RESTRICTED_MINOR,
    SHARED_MINOR,
    is_handle,
    usable_minor,
)
from .minor_table import ByMinor

#: Owner of the class that the distrusted flows of one address share; without an address, of the
#: one that all further addresses share.  An email has no control characters, so that these kinds
#: of owner and users never meet.
RESTRICTED_KEY = "\x01"
#: Stands after the address in the key of a slow class of one user's device too many, and before
#: the user's key.
DEVICE = "/device-"
#: Owner of a class that was made in advance for the next new user.
SPARE = "\x03"
#: Owner of the class that newcomers share when all minors are taken.
DEFAULT_SHARED = "\x04"
#: At most so many addresses have a restricted class of their own, a sixteenth of the minors: who
#: writes lines in strangers' names must not use up what users need.
RESTRICTED_MAX = 4_096
#: With more classes than this, making one takes long (it walks all others).
FEW_CLASSES = 2_000

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

    @property
    def is_user(self) -> bool:
        """Whether this is somebody with a name."""
        return self.key >= " "

    @property
    def is_common(self) -> bool:
        """Whether this is a class that many share, which therefore is never collected."""
        return self.key in (RESTRICTED_KEY, DEFAULT_SHARED)


class Minors:
    """The table of owners.  Pure: the caller persists what the methods return."""

    def __init__(
        self, major: int, owners: Iterable[Owner] = (), reserve: int = 0, trees: int = 1
    ) -> None:
        """``owners`` come from the last run; ``major`` is the root's handle, of the first of
        ``trees``.

        ``reserve`` parked classes are kept for users: restricted ones are made of what is above.
        """
        self.major, self._trees = major, trees
        self.by_key: dict[str, Owner] = {}
        self.by_minor: ByMinor[Owner] = ByMinor()
        self._reserve = reserve
        # By tree.  Spare classes come first: nobody's return is the slower for it.
        self._spare: list[dict[int, None]] = [{} for _tree in range(trees)]
        self._parked: list[dict[int, None]] = [{} for _tree in range(trees)]
        self._restricted: set[int] = set()
        # Minors from here on were never taken; those below that are free, once they are needed.
        self._next = [self._first(tree) for tree in range(trees)]
        self._free: list[list[int]] | None = None
        for owner in sorted(owners, key=lambda owner: owner.moved):
            # After a change of the handle one or two minors cannot be had any more.
            if not is_handle(major, owner.minor, trees):
                self._enter(owner)

    def _enter(self, owner: Owner) -> None:
        self.by_key[owner.key] = owner
        self.by_minor[owner.minor] = owner
        if owner.state == PARKED and owner.minor <= LAST_USER_MINOR:
            pools = self._spare if owner.key.startswith(SPARE) else self._parked
            pools[owner.minor % self._trees][owner.minor] = None
        elif owner.key.startswith(RESTRICTED_KEY) and not owner.is_common:
            self._restricted.add(owner.minor)
        if owner.minor <= LAST_USER_MINOR:
            tree = owner.minor % self._trees
            self._next[tree] = max(self._next[tree], owner.minor + self._trees)

    @property
    def pooled(self) -> int:
        """How many minors wait for their next owner."""
        return sum(map(self._pooled, range(self._trees)))

    def _pooled(self, tree: int) -> int:
        return len(self._spare[tree]) + len(self._parked[tree])

    def _first(self, tree: int) -> int:
        return FIRST_USER_MINOR + (tree - FIRST_USER_MINOR) % self._trees

    def take(self, key: str, now_s: float, tree: int | None = None) -> tuple[Owner, Owner | None]:
        """The owner record of ``key``, made active; and the record it displaced, if any.

        An owner that comes back gets its own minor, then a spare one is used, then the longest
        parked one is reused, then a fresh one; of ``tree`` as long as it has any, where none is
        named of the one where most wait.  Raises Exhausted when all 65,528 are taken.
        """
        owner = self.by_key.get(key)
        if owner is not None:
            if owner.state != ACTIVE:
                self._parked[owner.minor % self._trees].pop(owner.minor, None)
                owner.state, owner.since, owner.moved = ACTIVE, now_s, now_s
                self._enter(owner)
            return owner, None
        if tree is None:
            tree = max(range(self._trees), key=self._pooled)
        pool = self._spare[tree] or self._parked[tree]
        if pool:
            minor = next(iter(pool))
            old = self.by_minor[minor]
            self._drop(old)
            owner = Owner(key, minor, ACTIVE, now_s, now_s, old.up_seen, old.down_seen)
            self._enter(owner)
            return owner, old
        try:
            minor = self._fresh(tree)
        except Exhausted:
            others = [other for other in range(self._trees) if self._pooled(other)]
            if not others:
                raise
            return self.take(key, now_s, others[0])
        owner = Owner(key, minor, ACTIVE, now_s, now_s)
        self._enter(owner)
        return owner, None

    def move(
        self, owner: Owner, tree: int, rest: str, now_s: float
    ) -> tuple[Owner, Owner | None, Owner]:
        """A user gets a minor of another tree: (the record as it is now, the one that it displaced,
        the old minor's).  The latter is in quarantine under the key ``rest``: flows may bear its
        mark.  Raises Exhausted if that tree has no minor left.
        """
        self._drop(owner)
        try:
            moved, displaced = self.take(owner.key, now_s, tree)
        except Exhausted:
            self._enter(owner)
            raise
        left = Owner(rest, owner.minor, QUARANTINE, now_s, now_s, owner.up_seen, owner.down_seen)
        if moved.minor % self._trees != tree:
            self.forget(moved)
            self._enter(owner)
            raise Exhausted(f"tree {tree} has no minor left")
        self._enter(left)
        return moved, displaced, left

    def restricted(self, address: str, now_s: float) -> Owner:
        """The owner of the restricted class of ``address`` (hexadecimal), made active.

        Above `RESTRICTED_MAX`, and when making one would be at users' cost, it is the owner of the
        class that all further addresses share.  A displaced record has the same minor, and goes
        when this one is saved.
        """
        key = RESTRICTED_KEY + address
        known = self.by_key.get(key)
        if known is None or known.state != ACTIVE:
            # Making a class costs little while there are few.
            is_dear = self.pooled < self._reserve and len(self.by_minor) > FEW_CLASSES
            if len(self._restricted) >= RESTRICTED_MAX or is_dear:
                return self._common(RESTRICTED_KEY, RESTRICTED_MINOR, now_s)
            try:
                return self.take(key, now_s)[0]
            except Exhausted:
                return self._common(RESTRICTED_KEY, RESTRICTED_MINOR, now_s)
        return known

    def overflow(self, now_s: float) -> Owner:
        """The owner of the class that newcomers share, with the default limits, made active.

        For when `take` has raised Exhausted.  Its minor is no user's, so that it is always there.
        """
        return self._common(DEFAULT_SHARED, SHARED_MINOR, now_s)

    def _common(self, key: str, minor: int, now_s: float) -> Owner:
        owner = self.by_key.get(key)
        if owner is None:
            holder = self.by_minor.get(minor)
            if holder is not None and holder.is_user:
                # Before these minors were set apart a user may have got one; they keep it.
                minor = self._fresh(0)
            elif holder is not None:
                self._drop(holder)  # the kernel had this class, and the state was lost
            owner = Owner(key, minor, ACTIVE, now_s, now_s)
            self._enter(owner)
        return owner

    def spares(self, count: int, now_s: float) -> list[Owner]:
        """Up to ``count`` new spare owners; their classes are the caller's to make."""
        made = []
        for _ in range(count):
            try:
                minor = self._fresh(min(range(self._trees), key=self._pooled))
            except Exhausted:
                break
            owner = Owner(f"{SPARE}{minor:x}", minor, PARKED, now_s)
            self._enter(owner)
            made.append(owner)
        return made

    def _fresh(self, tree: int) -> int:
        """A minor of a tree, or of another one when it has none left."""
        trees = [tree, *(other for other in range(self._trees) if other != tree)]
        for each in trees:
            while self._next[each] <= LAST_USER_MINOR:
                minor = self._next[each]
                self._next[each] += self._trees
                if self._is_free(minor):
                    return minor
            if self._free is None:
                # Once: a look at each minor for each line would take milliseconds.
                self._free = [
                    list(range(self._first(one), LAST_USER_MINOR + 1, self._trees))[::-1]
                    for one in range(self._trees)
                ]
            while self._free[each]:
                minor = self._free[each].pop()
                if self._is_free(minor):
                    return minor
        raise Exhausted(
            f"all {len(self.by_minor)} minors are taken; newcomers share one class with the "
            "default limits until idle users are collected"
        )

    def _is_free(self, minor: int) -> bool:
        return usable_minor(self.major, minor, self._trees) and minor not in self.by_minor

    def forget(self, owner: Owner) -> None:
        """Drop an owner; its minor is free."""
        self._drop(owner)
        if self._free is not None:
            self._free[owner.minor % self._trees].append(owner.minor)

    def rename(self, owner: Owner, key: str) -> None:
        """Whoever has a minor is called otherwise."""
        del self.by_key[owner.key]
        owner.key = key
        self.by_key[key] = owner

    def _drop(self, owner: Owner) -> None:
        self.by_key.pop(owner.key, None)
        self.by_minor.pop(owner.minor, None)
        for pools in (self._spare, self._parked):
            pools[owner.minor % self._trees].pop(owner.minor, None)
        self._restricted.discard(owner.minor)


def without_class(minors: Minors, has: Callable[[int], bool], pool_min: int) -> list[Owner]:
    """Whose class is to be made before it is needed: first active users, then the pool.

    Of users those first who moved last.  ``has`` says whether a minor has its class; there are
    none after a reboot.
    """
    owners = minors.by_minor.values()
    users = [o for o in owners if o.state == ACTIVE and o.is_user and not has(o.minor)]
    users.sort(key=lambda owner: owner.moved, reverse=True)
    pool = sorted(
        (owner for owner in owners if owner.state == PARKED),
        key=lambda owner: (owner.is_user, owner.moved),
    )
    return users + [owner for owner in pool[:pool_min] if not has(owner.minor)]
