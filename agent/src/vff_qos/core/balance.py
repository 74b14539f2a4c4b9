"""Which of several trees the next user goes to: the one whose users may use the least.

Not a hash of the name: two users of a gigabit on one queue, and none on the other, is what a hash
gives every other time.  A user stays in their tree, which their minor names and the state keeps.
"""

from __future__ import annotations

from .policy.model import Limits

#: Whoever may use more than this in a direction can fill a queue alone.  Such users are counted,
#: and put as far from each other as there are trees; among others they count as so much.
HEAVY_BPS = 1_000_000_000


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
