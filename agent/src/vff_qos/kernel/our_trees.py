"""Our trees, found without settings and records: for what lifts limits on a broken node."""

from __future__ import annotations

import socket
from contextlib import closing

from ..core.htb import CEIL_MINOR, UNCLASSIFIED_MINOR, same_class, shared_class
from ..core.plan.handles import ALIAS, is_tree
from . import rtnetlink
from .packed.qdisc_list import read_qdiscs
from .packed.tc import Tc

_SHARED = (CEIL_MINOR, UNCLASSIFIED_MINOR)


def majors_found() -> set[int]:
    """Handles of the trees in this network namespace that are ours: on an IFB with our alias, or
    built as only we do it, on whatever device.  Raises KernelRefused, OSError.

    Ours have the HTB where ours stand, our default class, and both classes that all share, in every
    parameter but the rate as only we choose it.
    """
    names = {index: name for index, name in socket.if_nameindex()}
    indices = {name: index for index, name in names.items()}
    found = rtnetlink.tree_majors(ALIAS, rtnetlink.all_links(), rtnetlink.top_qdiscs())
    with closing(Tc()) as tc:
        for qdisc in read_qdiscs(tc.netlink, names, found):
            major = qdisc.handle >> 16
            if qdisc.default != UNCLASSIFIED_MINOR or not is_tree(qdisc, (major,)):
                continue
            shared = tc.shared_classes(indices[qdisc.dev], major, _SHARED)
            if len(shared) == len(_SHARED) and all(
                same_class(params, shared_class(params.ceil_bps)) for params in shared.values()
            ):
                found.add(major)
    return found
