"""Which addresses belong to one user alone, so that their next connection is known in advance.

An address qualifies when trusted claims of a single user span ten minutes; it is forgotten an
hour after the last one.  A second user bars it for a day: behind CGNAT nobody shall be put into
somebody else's class twice.  An IPv6 address stands for its /64, which is what one customer has
(RFC 6177) and whose low half changes with every temporary address (RFC 8981).

Tables are bounded, and so is what one user can take of them: with an own /48 a customer could
otherwise crowd all others out.
"""

from __future__ import annotations

from .claims.trust import VOUCH_S, address_key

#: The first and the last trusted claim of an address must lie so far apart, in seconds.
PROVE_S = 600.0
#: How long an address is believed after its last trusted claim.
KEEP_S = float(VOUCH_S)
#: How long an address that two users share is not looked at.
BAR_S = 86_400.0
MAX_ADDRESSES = 8_192
MAX_PER_USER = 16


class _Seen:
    """Trusted claims of one user from one address."""

    __slots__ = ("first", "last", "proven", "user")

    def __init__(self, user: str, now_s: float) -> None:
        self.user, self.first, self.last, self.proven = user, now_s, now_s, False


class SoleUsers:
    """Addresses (packed; IPv6: the upper eight bytes) and their only users.

    Times are in seconds of any clock that never goes back.  ``added`` and ``removed`` collect
    what changed; who has carried it out clears them.
    """

    def __init__(self) -> None:
        self.added: dict[bytes, str] = {}
        self.removed: set[bytes] = set()
        # The longest unseen first.
        self._seen: dict[bytes, _Seen] = {}
        self._barred: dict[bytes, float] = {}
        self._of_user: dict[str, dict[bytes, None]] = {}

    def saw(self, address: bytes, user: str, now_s: float) -> None:
        """A trusted claim gave a live flow from ``address`` to ``user``."""
        key = address_key(address)
        barred_until = self._barred.get(key)
        if barred_until is not None:
            if now_s < barred_until:
                return
            del self._barred[key]
        seen = self._seen.get(key)
        if seen is not None and now_s - seen.last > KEEP_S:
            self._forget(key)
            seen = None
        if seen is None:
            seen = self._enter(key, user, now_s)
        elif seen.user != user:
            self.bar(address, now_s)
            return
        self._seen[key] = self._seen.pop(key)
        seen.last = now_s
        if not seen.proven and now_s - seen.first >= PROVE_S:
            seen.proven = True
            self.added[key] = user
            self.removed.discard(key)

    def bar(self, address: bytes, now_s: float) -> None:
        """``address`` has more than one user, or one without a name."""
        key = address_key(address)
        self._forget(key)
        self._barred.pop(key, None)
        if len(self._barred) >= MAX_ADDRESSES:
            del self._barred[next(iter(self._barred))]
        self._barred[key] = now_s + BAR_S

    def holds(self, address: bytes) -> bool:
        """Whether connections from ``address`` are given away in advance."""
        seen = self._seen.get(address_key(address))
        return seen is not None and seen.proven

    def proven(self, now_s: float) -> dict[bytes, str]:
        """All addresses that qualify now, and their users; forgets those unseen for too long."""
        for key in [k for k, seen in self._seen.items() if now_s - seen.last > KEEP_S]:
            self._forget(key)
        return {key: seen.user for key, seen in self._seen.items() if seen.proven}

    def _enter(self, key: bytes, user: str, now_s: float) -> _Seen:
        if len(self._seen) >= MAX_ADDRESSES:
            self._forget(next(iter(self._seen)))
        mine = self._of_user.setdefault(user, {})
        if len(mine) >= MAX_PER_USER:
            self._forget(next(iter(mine)))
        self._of_user.setdefault(user, {})[key] = None
        seen = self._seen[key] = _Seen(user, now_s)
        return seen

    def _forget(self, key: bytes) -> None:
        seen = self._seen.pop(key, None)
        if seen is None:
            return
        mine = self._of_user[seen.user]
        del mine[key]
        if not mine:
            del self._of_user[seen.user]
        self.added.pop(key, None)
        if seen.proven:
            self.removed.add(key)
