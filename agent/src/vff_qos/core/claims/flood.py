"""Who has strangers' text written in numbers: their new connections are slowed down.

A line that bears a stranger's text names the connection it came by.  One that stands in reach of
another such text may be forged, name and all, so it counts only if such a connection lives; a
forger who knows an address guesses its port once in thousands of lines.
"""

from __future__ import annotations

#: What a line weighs: of a connection that nobody has claimed, and of a user's.
STRANGERS, USERS = 10, 1
#: So much within a window: 40 connections that were refused, or 400 lines of a user's one.
ENOUGH, WINDOW_S = 400, 10.0
#: Addresses that are counted; with more, whoever came first is forgotten.
MAX_ADDRESSES = 8_192


class FloodWatch:
    """Adds up by address (`address_key`).  Times in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        # {address: (when its window began, weight within)}
        self._seen: dict[bytes, tuple[float, int]] = {}
        #: Addresses that have had enough, until the caller takes them away.
        self.floods: dict[bytes, None] = {}

    def saw(self, address: bytes, weight: int, now_s: float) -> None:
        """A line with a stranger's text that came from ``address``."""
        began_s, total = self._seen.pop(address, (now_s, 0))
        if now_s - began_s >= WINDOW_S:
            began_s, total = now_s, 0
        total += weight
        if total >= ENOUGH:
            self.floods[address] = None
            return
        if len(self._seen) >= MAX_ADDRESSES:
            del self._seen[next(iter(self._seen))]
        self._seen[address] = began_s, total
