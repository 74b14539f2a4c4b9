"""What a node should have in the kernel, by its settings.

Ingress of the WAN device: chain 0 holds one flower filter for each protocol and port range
(preferences 20736 to 20741), which copies the connection's mark to the packet and goes on in our
chain (its number is the handle's).  There packets with our tag are redirected to the IFB as they
are; others lose the mark first, because a mark of other software that lies in conntrack must
not turn up in policy routing, where it was not before.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..htb import CEIL_MINOR, PROVISIONAL, TAG_MASK, UNCLASSIFIED_MINOR, classid, shared_class
from ..settings import Settings, merge_ranges
from .nft_table import normal_table, table, table_text
from .objects import (
    INGRESS,
    PREF_ALL,
    PREF_PORTS,
    PREF_ROOT,
    ROOT,
    Clsact,
    CopyMark,
    Filter,
    Flower,
    FwMark,
    Ifb,
    KernelObject,
    NftTable,
    Place,
    Redirect,
    SetMark,
    SharedClass,
    SharedLeaf,
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


def desired(settings: Settings, wan: str, mtu: int = 1500) -> list[KernelObject]:
    """Every object of ours, in the order of creation; ``mtu`` is that of the WAN device.

    Without sysctls: not every host has or lets us set them.
    """
    split_bytes = mtu + _FRAME_BYTES if settings.split else 0
    ifb = settings.ifb
    return [
        Ifb(ifb),
        *_tree(settings, ifb, split_bytes, settings.unclassified_upload_bps),
        our_table(settings),
        *_tree(settings, wan, split_bytes, settings.unclassified_download_bps),
        Clsact(wan),
        *_ingress_filters(settings, wan),
    ]


def our_table(settings: Settings) -> NftTable:
    """Our nft table as it should be."""
    return NftTable(normal_table(table(settings)), text=table_text(settings))


def _tree(
    settings: Settings, dev: str, split_bytes: int, unclassified_bps: int
) -> Iterator[KernelObject]:
    major = settings.major
    yield Tree(dev, major, UNCLASSIFIED_MINOR, split_bytes)
    yield SharedClass(dev, major, CEIL_MINOR, shared_class(settings.node_ceil_bps))
    yield SharedClass(dev, major, UNCLASSIFIED_MINOR, shared_class(unclassified_bps))
    yield SharedLeaf(dev, major, UNCLASSIFIED_MINOR, settings.leaf)
    yield Filter(Place(dev, ROOT, 0, PREF_ROOT, "all", 0), FwMark())


def _ingress_filters(settings: Settings, wan: str) -> Iterator[Filter]:
    chain = settings.major
    to_ifb = Redirect(settings.ifb)
    yield Filter(
        Place(wan, INGRESS, chain, 1, "all", classid(chain, 0)), FwMark(TAG_MASK), (to_ifb,)
    )
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
