"""Which of several trees the next user goes to: the one whose users may use the least.

Not a hash of the name: two users of a gigabit on one queue, and none on the other, is what a hash
gives every other time.  A user's tree is what their minor names, which the state keeps.
"""

from __future__ import annotations

from collections.abc import Set

from .policy.model import Limits

#: Whoever may use more than this in a direction can fill a queue alone.  Such users are counted,
#: and put as far from each other as there are trees; among others they count as so much.
HEAVY_BPS = 1_000_000_000
#: A difference of less than this part of what the fullest tree has is left.
_WORTH = 4


def wanted_bps(limits: Limits) -> int:
    """What a user may use in the direction where that is more; unlimited ones are just heavy."""
    rates = [
        HEAVY_BPS + 1 if bps is None else bps for bps in (limits.upload_bps, limits.download_bps)
    ]
    return max(rates)


class Balance:
    """What the active users of each tree may use, in bit/s."""

    def __init__(self, trees: int) -> None:
        self._trees = trees
        self._bps = [0] * trees
        self._heavy = [0] * trees
        self._users: dict[int, int] = {}

    def put(self, minor: int, bps: int) -> None:
        """The user of a minor may use so much."""
        self.remove(minor)
        self._users[minor] = bps
        self._count(minor, bps, 1)

    def remove(self, minor: int) -> None:
        """The minor is no active user's."""
        bps = self._users.pop(minor, None)
        if bps is not None:
            self._count(minor, bps, -1)

    def _count(self, minor: int, bps: int, sign: int) -> None:
        tree = minor % self._trees
        self._bps[tree] += sign * min(bps, HEAVY_BPS)
        self._heavy[tree] += sign * (bps > HEAVY_BPS)

    def lightest(self, bps: int) -> int:
        """The tree for one more who may use so much; of equals the first."""
        if bps > HEAVY_BPS:
            return min(range(self._trees), key=lambda t: (self._heavy[t], self._bps[t]))
        return min(range(self._trees), key=self._bps.__getitem__)

    def better(self, staying: Set[int]) -> tuple[int, int] | None:
        """The minor of a user who should move, and the tree; None if it is not worth it.

        Each move makes the difference smaller by a quarter at least, so that they come to an end.
        """
        heavy, bps = self._heavy, self._bps
        full, empty = heavy.index(max(heavy)), heavy.index(min(heavy))
        if heavy[full] - heavy[empty] > 1:
            wanted = [m for m, rate in self._of_tree(full, staying) if rate > HEAVY_BPS]
            return (min(wanted), empty) if wanted else None
        full, empty = bps.index(max(bps)), bps.index(min(bps))
        gap = bps[full] - bps[empty]
        if gap <= bps[full] // _WORTH:
            return None
        rest, minor = min(
            ((abs(gap - 2 * rate), m) for m, rate in self._of_tree(full, staying)
             if rate <= HEAVY_BPS),
            default=(gap, 0),
        )  # fmt: skip
        return (minor, empty) if rest <= gap - gap // 4 else None

    def _of_tree(self, tree: int, staying: Set[int]) -> list[tuple[int, int]]:
        return [
            (minor, rate)
            for minor, rate in self._users.items()
            if minor % self._trees == tree and minor not in staying
        ]
