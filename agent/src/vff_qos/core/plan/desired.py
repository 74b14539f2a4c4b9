"""What a node should have in the kernel, by its settings.

Ingress of the WAN device: chain 0 holds one flower filter for each protocol and port range
(preferences 20736 to 20741), which copies the connection's mark to the packet and goes on in our
chain (its number is the handle's).  There packets with our tag are redirected to the IFB as they
are; others lose the mark first, because a mark of other software that lies in conntrack must
not turn up in policy routing, where it was not before.

Where there are several trees, each is in a transmit queue of its device, below an mq, and filters
at egress of WAN and IFB lead packets to the queue that their mark names, before the device chooses
one (__dev_queue_xmit).  At ingress it could not be said: from 6.2 on act_skbedit refuses a queue
there.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..htb import CEIL_MINOR, PROVISIONAL, TAG_MASK, UNCLASSIFIED_MINOR, classid, shared_class
from ..layout import Layout
from ..settings import Settings, merge_ranges
from .handles import EGRESS, INGRESS, PREF_ALL, PREF_LEAD, PREF_PORTS, PREF_ROOT, PREF_SPREAD, ROOT
from .nft_table import normal_table, table, table_text
from .objects import (
    Clsact,
    CopyMark,
    Filter,
    Flower,
    FwMark,
    Ifb,
    KernelObject,
    Mq,
    NftTable,
    Place,
    Redirect,
    SetMark,
    SetQueue,
    SharedClass,
    SharedLeaf,
    SpreadQueues,
    Sysctl,
    Tree,
)

#: What a frame may have beyond the MTU: the Ethernet header, and tags.  A TBF drops what is larger
#: and cannot be split.
_FRAME_BYTES = 36
_FAMILIES = ("ip", "ipv6")
_TRANSPORTS = (6, 17)  # TCP, UDP
#: With it the kernel knows when a connection began; it costs 8 bytes a connection.
SYSCTLS = (Sysctl("net.netfilter.nf_conntrack_timestamp", "1"),)


def desired(
    settings: Settings, wan: str, mtu: int = 1500, queues: int | None = None
) -> list[KernelObject]:
    """Every object of ours, in the order of creation; ``mtu`` is that of the WAN device, and
    ``queues`` how many transmit queues it uses.

    Without sysctls: not every host has or lets us set them.
    """
    split_bytes = mtu + _FRAME_BYTES if settings.split else 0
    ifb = settings.ifb
    layout = settings.layout
    at_ifb: list[KernelObject] = [Clsact(ifb), *_lead(layout, ifb)] if layout.trees > 1 else []
    return [
        Ifb(ifb, queues=layout.trees),
        *_trees(settings, ifb, split_bytes, settings.unclassified_upload_bps),
        *at_ifb,
        our_table(settings),
        *_trees(settings, wan, split_bytes, settings.unclassified_download_bps),
        Clsact(wan),
        *(_lead(layout, wan, queues) if layout.trees > 1 else []),
        *_ingress_filters(settings, wan),
    ]


def our_table(settings: Settings) -> NftTable:
    """Our nft table as it should be."""
    return NftTable(normal_table(table(settings)), text=table_text(settings))


def _trees(
    settings: Settings, dev: str, split_bytes: int, unclassified_bps: int
) -> Iterator[KernelObject]:
    if settings.trees > 1:
        yield Mq(dev, settings.major, settings.trees)
    ceil = shared_class(settings.tree_ceil_bps)
    # A class whose own rate is above its parent's ceiling is let through, and the parent runs into
    # debt by it, for up to a minute (sch_htb.c, htb_accnt_ctokens): its siblings would pay.
    unclassified = shared_class(min(settings.part_bps(unclassified_bps), settings.tree_ceil_bps))
    for number, major in enumerate(settings.layout.majors):
        if settings.trees > 1:
            yield Tree(dev, major, UNCLASSIFIED_MINOR, queue=number)
        else:
            yield Tree(dev, major, UNCLASSIFIED_MINOR, split_bytes)
        yield SharedClass(dev, major, CEIL_MINOR, ceil, number)
        yield SharedClass(dev, major, UNCLASSIFIED_MINOR, unclassified, number)
        yield SharedLeaf(dev, major, UNCLASSIFIED_MINOR, settings.leaf, number)
        yield Filter(Place(dev, ROOT, 0, PREF_ROOT, "all", 0, number), FwMark())


def _lead(layout: Layout, dev: str, queues: int | None = None) -> Iterator[Filter]:
    """One look-up of the mark's upper half, whatever the number of queues.

    A device with more queues than trees would send what is nobody's past all ceilings.
    """
    if queues is not None and queues > layout.trees:
        place = Place(dev, EGRESS, 0, PREF_SPREAD, "all", 1)
        yield Filter(place, Flower(), (SpreadQueues(layout.trees),))
    for queue, major in enumerate(layout.majors):
        place = Place(dev, EGRESS, 0, PREF_LEAD, "all", classid(major, 0))
        yield Filter(place, FwMark(TAG_MASK), (SetQueue(queue),))


def _ingress_filters(settings: Settings, wan: str) -> Iterator[Filter]:
    chain = settings.major
    to_ifb = Redirect(settings.ifb)
    ours = FwMark(settings.layout.tag_mask)
    yield Filter(Place(wan, INGRESS, chain, 1, "all", classid(chain, 0)), ours, (to_ifb,))
    yield Filter(Place(wan, INGRESS, chain, 2, "all", 1), Flower(), (SetMark(0), to_ifb))
    # A provisional mark's class is the same.
    copied = 0xFFFFFFFF & ~PROVISIONAL if settings.early_shaping else 0xFFFFFFFF
    mark = (CopyMark(copied, chain),)
    ports = settings.service_ports
    if ports:
        # Merged, because two filters for one packet would shape it twice.
        ports = merge_ranges([*ports, *settings.static_ports])
    for i, family in enumerate(_FAMILIES):
        if not settings.service_ports:
            yield Filter(Place(wan, INGRESS, 0, PREF_ALL + i, family, 1), Flower(), mark)
        for j, protocol in enumerate(_TRANSPORTS):
            pref = PREF_PORTS + 2 * i + j
            for low, high in ports:
                place = Place(wan, INGRESS, 0, pref, family, low << 16 | high)
                yield Filter(place, Flower(protocol, low, high), mark)
