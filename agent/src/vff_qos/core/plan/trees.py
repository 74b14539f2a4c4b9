"""How many trees a node has, and why.

An HTB has one lock that each packet of its device takes: LibreQoS names 2.5 to 4 Gbit/s for one,
and a tree for each transmit queue goes beyond that.  But each tree has a ceiling of its own, and
what one does not use another cannot have, so that a node with one ceiling that a tree can keep has
one tree.
"""

from __future__ import annotations

from typing import NamedTuple

from ..layout import MAX_TREES, SHARED_CEIL_BPS, can_be_many
from ..settings import UNLIMITED_BPS, Settings
from ..units import format_rate

#: The first kernel that sends a packet to the queue that a filter at egress has named
#: (netdev_xmit_skip_txqueue in net/core/dev.c).
_LEADS_FROM = (5, 19)


class Trees(NamedTuple):
    """``why`` is empty where nobody asked for more than one."""

    number: int
    why: str


def decide(
    settings: Settings, queues: int | None, processors: int, kernel: tuple[int, int]
) -> Trees:
    """How many trees there shall be.

    ``queues``: transmit queues that the WAN device uses, None if it does not say; ``kernel``: its
    version.
    """
    wanted, ceil_bps = settings.trees_wanted, settings.node_ceil_bps
    if wanted == 1:
        return Trees(1, "")
    if ceil_bps <= SHARED_CEIL_BPS:
        return Trees(1, f"only one tree can share wan_ceil {format_rate(ceil_bps)} exactly")
    if not can_be_many(settings.major):
        return Trees(1, f"a handle for several trees ends in 00, not as {settings.major:x} does")
    if kernel < _LEADS_FROM:
        version = ".".join(map(str, kernel))
        return Trees(1, f"kernel {version} leads no packet to a queue; that begins with 5.19")
    if queues is None:
        return Trees(1, "the WAN device does not say how many transmit queues it uses")
    if queues < 2:
        return Trees(1, "the WAN device uses one transmit queue")
    limits = [(queues, f"the WAN device uses {queues} transmit queues")]
    if wanted:
        limits.insert(0, (wanted, f"{wanted} are asked for"))
    else:
        limits.append((processors, f"the node has {processors} processors"))
        if ceil_bps < UNLIMITED_BPS:
            share = f"each has at least {format_rate(SHARED_CEIL_BPS)} of {format_rate(ceil_bps)}"
            limits.append((ceil_bps // SHARED_CEIL_BPS, share))
    limits.append((MAX_TREES, "there are never more"))
    number, why = min(limits, key=lambda limit: limit[0])
    return Trees(max(number, 1), why)
