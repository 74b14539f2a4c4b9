"""What the kernel has when the agent comes: marks of an earlier run, of strangers and of nobody."""

from __future__ import annotations

from collections import Counter

from ..core.flows.mirror import Heard
from ..core.htb import MINOR_MASK, OURS_MASK, PROVISIONAL
from ..core.owners import ACTIVE
from ..kernel.packed.conntrack import Conntrack, decode_tuple
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
    for mark, count in Counter(conntrack.dump_marks(tag, OURS_MASK)).items():
        owner = registry.owner(mark & MINOR_MASK)
        if owner is None or mark & PROVISIONAL:
            _clear(conntrack, mark, owner is not None, keep_early)
        else:
            marked[owner.minor] = count
    revived = []
    for minor in marked:
        owner = registry.minors.by_minor[minor]
        if owner.state != ACTIVE and not owner.key.startswith(ORPHAN):
            revived.append(registry.own(owner.key))
    registry.commit()
    heard.add(flows.compare(lossy=True))
    return marked


def _clear(conntrack: Conntrack, mark: int, is_owned: bool, keep_early: bool) -> None:
    """Take a mark of nobody, or a provisional one, off its flows."""
    if is_owned and keep_early:
        return
    strays = []
    for entry in conntrack.dump(mark, 0xFFFFFFFF):
        flow = decode_tuple(entry.tuple_raw)
        # UDP flows are handed on without early shaping, too.
        if not is_owned or flow is None or flow.proto != _UDP:
            strays.append((entry, 0))
    conntrack.set_entries(strays)
