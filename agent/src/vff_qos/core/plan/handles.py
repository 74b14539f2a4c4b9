"""Where things are in the kernel, as it shows them, and which of them are ours by their handles.

Apart from `objects`, because agent and commands need it at each start, and no plan.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ..htb import classid
from ..layout import mq_handle

#: IFLA_IFALIAS by which we know our own IFB device.
ALIAS = "vff-qos"
#: Preferences of our filters in chain 0: one a protocol for ports, then one a family for "all".
PREF_PORTS = 20736
PREF_ALL = PREF_PORTS + 4
OUR_PREFS = range(PREF_PORTS, PREF_ALL + 2)
#: Preferences of the filters at egress where there are several trees: what spreads all packets over
#: the queues that have one, then what leads those of users to their own.
PREF_SPREAD, PREF_LEAD = PREF_ALL + 2, PREF_ALL + 3
#: The fw filter of a tree has the last preference: the kernel breaks off a listing after it.
PREF_ROOT = 65535

#: Parents as rtnetlink has them (TC_H_ROOT, TC_H_INGRESS).
ROOT_PARENT = 0xFFFFFFFF
INGRESS_PARENT = 0xFFFFFFF1
#: A TBF's ``limit`` for each byte of the size above which it splits: the kernel does not tell that
#: size (TCA_TBF_BURST), and below a TBF that has a tree the limit means nothing.
SPLIT_LIMIT = 1_000

#: Hooks of filters: those of clsact, and the HTB of a tree.
INGRESS, EGRESS, ROOT = "ingress", "egress", "root"


class Interface(NamedTuple):
    """A network interface; ``txqlen`` in packets, ``mtu`` in bytes."""

    ifindex: int
    kind: str
    alias: str
    up: bool
    txqlen: int
    altnames: tuple[str, ...] = ()
    mtu: int = 1500
    #: Transmit queues that it was made with, and those that it uses (None: it does not say).
    queues: int = 1
    used_queues: int | None = None


class Qdisc(NamedTuple):
    """A qdisc; ``options`` is the raw TCA_OPTIONS, ``default`` the default minor of an HTB,
    ``limit`` that of a TBF without a rate in bytes."""

    dev: str
    kind: str
    handle: int
    parent: int
    options: bytes = b""
    default: int = 0
    limit: int = 0


def splitter(major: int) -> int:
    """Handle of the TBF above the tree with this major, where packets are split."""
    return classid(major + 1, 0)


def is_tree(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the HTB of a tree of ours: at the root, below its splitter, in its queue."""
    major = qdisc.handle >> 16
    places = (ROOT_PARENT, splitter(major) | 1, queue_parent(major))
    return qdisc.kind == "htb" and major in majors and qdisc.parent in places


def queue_parent(major: int) -> int:
    """Where the tree with this major is below its mq: that numbers queues from 1."""
    return mq_handle(major) | (major & 0xFF) + 1


def is_mq(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the mq above several trees of ours."""
    return (
        qdisc.kind == "mq"
        and qdisc.parent == ROOT_PARENT
        and qdisc.handle in map(mq_handle, majors)
    )


def is_splitter(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the TBF above a tree of ours."""
    return qdisc.kind == "tbf" and qdisc.limit > 0 and qdisc.handle in map(splitter, majors)


def leads_away(chain: int, pref: int, classifier: str) -> bool:
    """Whether a filter at ingress is one of ours that lead into our chain."""
    return chain == 0 and pref in OUR_PREFS and classifier == "flower"


def leads(hook: str, chain: int, pref: int, classifier: str) -> bool:
    """Whether a filter is one of ours at egress that lead packets to queues."""
    ours = {PREF_SPREAD: "flower", PREF_LEAD: "fw"}
    return hook == EGRESS and chain == 0 and ours.get(pref) == classifier
