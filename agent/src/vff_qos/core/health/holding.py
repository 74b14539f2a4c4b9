"""What limits a user at this moment: the same answer for ``explain`` and every other view."""

from __future__ import annotations

from typing import NamedTuple

#: From this share of a limit on it is what holds somebody.
_HELD = 0.9

#: What may hold somebody, the most telling first; `NOTHING` where nothing does.
PENALTY, LIMIT, NODE, RESTRICTED, NOTHING = "penalty", "limit", "node", "restricted", ""
KINDS = (PENALTY, LIMIT, NODE, RESTRICTED, NOTHING)


class Passing(NamedTuple):
    """A class at work; rates in bit/s, ``backlog_bytes`` waits in its queue."""

    rate_bps: int
    ceil_bps: int
    backlog_bytes: int

    @property
    def delay_s(self) -> float:
        """How long what waits now takes to leave: at the rate of now, or at the limit's."""
        rate_bps = self.rate_bps or self.ceil_bps
        return self.backlog_bytes * 8 / rate_bps if rate_bps else 0.0


class Held(NamedTuple):
    """What holds somebody: one of `KINDS` for programs and tables, and a sentence."""

    kind: str
    text: str


def holds(user: Passing, node: Passing, penalty: str = "", restricted: bool = False) -> Held:
    """What holds a user.  ``node`` is the class above all users.

    ``penalty`` names one that is in force; ``restricted``: connections in doubt of the user's
    addresses are in a class of their own, or this is such a class.
    """
    if user.rate_bps >= _HELD * user.ceil_bps and user.ceil_bps < node.ceil_bps:
        return (
            Held(PENALTY, f"a penalty ({penalty})") if penalty else Held(LIMIT, "their own limit")
        )
    if node.rate_bps >= _HELD * node.ceil_bps and user.rate_bps:
        return Held(NODE, "the node is full: the users share it")
    if restricted:
        return Held(RESTRICTED, "connections in doubt: they are restricted, all else is free")
    if user.backlog_bytes:
        # A queue for a moment is how TCP finds its rate.
        return Held(NOTHING, "nothing for long: packets wait for a moment")
    text = "nothing: they use what they want" if user.rate_bps else "nothing: they are idle"
    return Held(NOTHING, text)
