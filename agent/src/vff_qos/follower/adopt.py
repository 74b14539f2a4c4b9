"""What the kernel has when the agent comes: marks of an earlier run, of strangers and of nobody."""

from __future__ import annotations

from ..core.flows.mirror import Heard
from ..core.htb import MINOR_MASK, OURS_MASK, PROVISIONAL
from ..core.owners import ACTIVE
from ..kernel.packed.conntrack import Conntrack, Entry, decode_tuple
from .flow_table import FlowTable
from .registry import ORPHAN, Registry

_UDP = 17


def adopt(
    conntrack: Conntrack,
    registry: Registry,
    flows: FlowTable,
    tag: int,
    keep_early: bool,
    heard: Heard,
) -> dict[int, int]:
    """Take over live flows; returns {minor: how many bear its mark}.

    Owners whose flows live are active again.  Marks of nobody are cleared, because the next claim
    would look like a conflict; so are provisional ones, where nobody would ever end them.  What
    the table then asks for is added to ``heard``.  Raises KernelRefused.
    """
    marked: dict[int, int] = {}
    strays: list[tuple[Entry, int]] = []
    for entry in conntrack.dump(tag, OURS_MASK):
        owner = registry.owner(entry.mark & MINOR_MASK)
        if owner is None:
            strays.append((entry, 0))
        elif entry.mark & PROVISIONAL:
            flow = decode_tuple(entry.tuple_raw)
            # UDP flows are handed on without early shaping, too.
            if not keep_early and (flow is None or flow.proto != _UDP):
                strays.append((entry, 0))
        else:
            marked[owner.minor] = marked.get(owner.minor, 0) + 1
    conntrack.set_entries(strays)
    revived = []
    for minor in marked:
        owner = registry.minors.by_minor[minor]
        if owner.state != ACTIVE and not owner.key.startswith(ORPHAN):
            revived.append(registry.own(owner.key))
    registry.commit()
    heard.add(flows.compare(lossy=True))
    return marked
