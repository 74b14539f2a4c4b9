"""What limits a user at this moment: the same answer for ``explain`` and every other view."""

from __future__ import annotations

from typing import NamedTuple

#: From this share of a limit on it is what holds somebody.
_HELD = 0.9


class Passing(NamedTuple):
    """A class at work; rates in bit/s, ``backlog_bytes`` waits in its queue."""

    rate_bps: int
    ceil_bps: int
    backlog_bytes: int


def holds(user: Passing, node: Passing, penalty: str = "") -> str:
    """In words.  ``node`` is the class above all users; ``penalty`` names one that is in force."""
    if user.rate_bps >= _HELD * user.ceil_bps and user.ceil_bps < node.ceil_bps:
        return f"a penalty ({penalty})" if penalty else "their own limit"
    if node.rate_bps >= _HELD * node.ceil_bps and user.rate_bps:
        return "the node is full: the users share it"
    if user.backlog_bytes:
        # A queue for a moment is how TCP finds its rate.
        return "nothing for long: packets wait for a moment"
    return "nothing: they use what they want" if user.rate_bps else "nothing: they are idle"
