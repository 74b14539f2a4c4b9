"""Slows down who floods the log with text that could forge lines, where it starts.

nft paces new connections of the addresses in two sets (core/plan/nft_table.py); what is open, and
whoever is not in them, is untouched.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable

from ..core import events
from ..core.claims.accesslog import Stranger, pack_end, parse_source
from ..core.claims.flood import STRANGERS, USERS, FloodWatch
from ..core.claims.trust import address_key
from ..core.flows.ends import is_loopback
from ..core.flows.mirror import Mirror
from ..core.flows.record import MINOR, RESTRICTED
from ..core.plan.nft_table import FLOOD_PER_S, FLOOD_TIMEOUT_S
from ..errors import KernelRefused
from ..journal import Journal
from ..kernel.packed.nft_elements import FloodSets

_LOOPBACK6 = bytes(15) + b"\1"


class FloodGuard:
    """Counts lines with strangers' text, and has nft pace whoever sends too many."""

    def __init__(self, mirror: Mirror, journal: Journal, clock: Callable[[], float]) -> None:
        """``clock`` never goes back."""
        #: How often an address was slowed down.
        self.paced = 0
        self._mirror, self._journal, self._clock = mirror, journal, clock
        self._watch = FloodWatch()
        self._sets = FloodSets()
        # Until when nft holds each address.
        self._until: dict[bytes, float] = {}

    def close(self) -> None:
        """Release the socket."""
        self._sets.close()

    @property
    def held(self) -> int:
        """How many addresses are slowed down now."""
        return len(self._until)

    def saw(self, strangers: Iterable[Stranger]) -> None:
        """Lines that bear a stranger's text were read."""
        now = self._clock()
        for stranger in strangers:
            source = parse_source(stranger.source)
            if source is None or is_loopback(source.address) or source.address == _LOOPBACK6:
                continue
            records = self._mirror.find(pack_end(source))
            if stranger.tainted and not records:
                continue  # forged, as far as anybody can tell
            claimed = any(r & MINOR and not r & RESTRICTED for r in records)
            self._watch.saw(address_key(source.address), USERS if claimed else STRANGERS, now)
        if self._watch.floods:
            self._pace(now)

    def _pace(self, now_s: float) -> None:
        self._until = {key: until for key, until in self._until.items() if until > now_s}
        fresh = [key for key in self._watch.floods if key not in self._until]
        self._watch.floods.clear()
        if not fresh:
            return
        try:
            self._sets.pace(fresh)
        except KernelRefused as error:
            why = "the sets are full" if error.code == errno.ENFILE else str(error)
            self._journal.tell(events.FLOOD_FREE, error=why)
            return
        for key in fresh:
            self.paced += 1
            self._until[key] = now_s + FLOOD_TIMEOUT_S
            self._journal.tell(
                events.FLOOD, address=_text(key), seconds=FLOOD_TIMEOUT_S, rate=FLOOD_PER_S
            )


def _text(key: bytes) -> str:
    if len(key) == 4:
        return socket.inet_ntop(socket.AF_INET, key)
    return f"{socket.inet_ntop(socket.AF_INET6, key + bytes(8))}/64"
