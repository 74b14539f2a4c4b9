"""What the kernel has when the agent comes: marks of an earlier run, of strangers and of nobody."""

from __future__ import annotations

import socket
from collections import Counter

from ..core.flows.mirror import Heard
from ..core.htb import ENDED_MINOR, MINOR_MASK, PROVISIONAL
from ..core.layout import Layout
from ..core.owners import ACTIVE
from ..kernel.packed.conntrack import Conntrack, Entry, decode_tuple
from .flow_table import FlowTable
from .registry import ORPHAN, Registry


def adopt(
    conntrack: Conntrack,
    registry: Registry,
    flows: FlowTable,
    layout: Layout,
    keep_early: bool,
    heard: Heard,
) -> dict[int, int]:
    """Take over live flows; returns {minor: how many bear its mark}.

    Owners whose flows live are active again.  Marks of nobody are cleared, because the next claim
    would look like a conflict; so are provisional ones, where nobody would ever end them.  What
    the table then asks for is added to ``heard``.  Raises KernelRefused.
    """
    marked: dict[int, int] = {}
    unowned, provisional, misplaced = set(), set(), set()
    for mark, count in Counter(conntrack.dump_marks(layout.tag, layout.mask)).items():
        if mark & MINOR_MASK == ENDED_MINOR:
            continue
        owner = registry.owner(mark & MINOR_MASK)
        if owner is not None and layout.mark(owner.minor) != mark & ~PROVISIONAL:
            misplaced.add(mark)
        if owner is None:
            unowned.add(mark)
        elif mark & PROVISIONAL:
            provisional.add(mark)
        else:
            marked[owner.minor] = count
    # UDP flows are handed on without early shaping, too.
    strays = unowned if keep_early else unowned | provisional
    if misplaced:
        # Of another number of trees; bootstrap moves what it finds, and these were on their way.
        entries = conntrack.dump_of(layout.tag, layout.mask, misplaced)
        conntrack.set_entries(
            [(e, e.mark & PROVISIONAL | layout.mark(e.mark & MINOR_MASK)) for e in entries]
        )
    if strays:
        entries = conntrack.dump_of(layout.tag, layout.mask, strays)
        conntrack.set_entries([(e, 0) for e in entries if e.mark in unowned or not is_udp(e)])
    revived = []
    for minor in marked:
        owner = registry.minors.by_minor[minor]
        if owner.state != ACTIVE and not owner.key.startswith(ORPHAN):
            revived.append(registry.own(owner.key))
    registry.commit()
    heard.add(flows.compare(lossy=True))
    return marked


def is_udp(entry: Entry) -> bool:
    """Whether a flow is one of UDP."""
    flow = decode_tuple(entry.tuple_raw)
    return flow is not None and flow.proto == socket.IPPROTO_UDP
