"""Early shaping: keeps the kernel's maps as core/sole_users.py decides.

What nobody confirms is ended.

nft marks the first packet of a new flow whose source is in a map.  Such a mark is *provisional*,
one bit of it says so: to a claim the flow is nobody's, and the claim decides.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ..core.htb import PROVISIONAL
from ..core.layout import Layout
from ..core.plan.nft_table import EARLY_TIMEOUT_S
from ..core.sole_users import SoleUsers
from ..errors import KernelRefused
from ..kernel.packed.conntrack import Conntrack
from ..kernel.packed.nft_elements import EarlyMaps
from .adopt import is_udp

_RENEW_S = EARLY_TIMEOUT_S / 3
#: A line comes with the first bytes of a connection; a flow without one is let go after one to
#: two of these.  Each look walks over the kernel's whole table: 19 ms with 50,000 flows.
_CONFIRM_S = 30.0
#: How soon it is tried again after the kernel has refused.
_RETRY_S = 30.0

#: The mark of a user's flows; None if the user has no class at the moment.
MarkOf = Callable[[str], int | None]


class EarlyShaping:
    """The shell around SoleUsers.  ``now_s`` is a clock that never goes back."""

    def __init__(self, layout: Layout, conntrack: Conntrack) -> None:
        self.users = SoleUsers()
        #: Flows whose provisional mark was ended without a claim.
        self.expired = 0
        self._conntrack = conntrack
        self._tag, self._mask = layout.tag | PROVISIONAL, layout.tag_mask
        self._maps = EarlyMaps()
        self._next_renewal = self._next_look = self._not_before = 0.0
        self._unconfirmed: set[int] = set()
        # Provisional marks: those of an earlier run, or of elements since the last look.
        self._may_be_there = True
        #: Elements in the kernel's maps, as far as we know.
        self.elements = 0

    def close(self) -> None:
        """Release the socket."""
        self._maps.close()

    def forget(self) -> None:
        """Users have other names: what was learned of their addresses is learned again."""
        self.users = SoleUsers()
        self.renew()

    def renew(self) -> None:
        """The maps or who has which mark may have changed: write them whole at the next turn."""
        self._next_renewal = 0.0

    def tend(self, now_s: float, mark_of: MarkOf) -> None:
        """Bring the maps up to date; cheap when nothing changed.  Raises KernelRefused."""
        if now_s >= self._not_before:
            try:
                self._write(now_s, mark_of)
            except KernelRefused:
                self._not_before = now_s + _RETRY_S
                self._next_renewal = 0.0
                raise
        if now_s >= self._next_look:
            self._next_look = now_s + _CONFIRM_S
            self._let_go()

    def _write(self, now_s: float, mark_of: MarkOf) -> None:
        users = self.users
        if now_s < self._next_renewal:
            if not users.added and not users.removed:
                return
            marks = self._marks(users.added, mark_of)
            try:
                self._maps.change(marks, users.removed)
            except KernelRefused as error:
                # Expired by itself, or taken by others: what is there is not what we think.
                if error.code not in (errno.ENOENT, errno.EEXIST, errno.EBUSY):
                    raise
            else:
                self.elements += len(marks) - len(users.removed)
                self._done()
                return
        marks = self._marks(users.proven(now_s), mark_of)
        self._maps.replace(marks)
        self.elements = len(marks)
        self._next_renewal = now_s + _RENEW_S
        self._done()

    def _done(self) -> None:
        self._may_be_there |= self.elements > 0
        self.users.added.clear()
        self.users.removed.clear()

    def _marks(self, users: dict[bytes, str], mark_of: MarkOf) -> dict[bytes, int]:
        marks = {key: mark_of(user) for key, user in users.items()}
        return {key: mark | PROVISIONAL for key, mark in marks.items() if mark is not None}

    def _let_go(self) -> None:
        """End provisional marks that were there at the last look: no line came for them."""
        if not self._may_be_there:
            return
        # UDP flows that continue others need no line, and are told of by none.
        entries = [e for e in self._conntrack.dump(self._tag, self._mask) if not is_udp(e)]
        old = [entry for entry in entries if entry.ident in self._unconfirmed]
        self._unconfirmed = {entry.ident for entry in entries}
        self._may_be_there = bool(entries or self.elements)
        self.expired += self._conntrack.set_entries([(entry, 0) for entry in old])
