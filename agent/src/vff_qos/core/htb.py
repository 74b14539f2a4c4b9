"""Numbers of the HTB trees: minors, marks and the parameters of a class.

One 32-bit number names a user everywhere: it is the conntrack mark, the skb mark and the tc
classid, ``(major << 16) | minor``.  cls_fw without handles takes the skb mark as the classid
itself (net/sched/cls_fw.c, fw_classify), so that no filter per user is needed.
"""

from __future__ import annotations

from typing import NamedTuple

ROOT_MINOR = 0x0000
CEIL_MINOR = 0x0001
FIRST_USER_MINOR = 0x0002
LAST_USER_MINOR = 0xFFFD
UNCLASSIFIED_MINOR = 0xFFFE

TAG_MASK = 0xFFFF0000
MINOR_MASK = 0x0000FFFF

#: HTB priority of a class that nobody owns at the moment: the kernel itself tells it apart.
PARKED_PRIO = 7

_GBIT = 1_000_000_000
_MTU_FRAME = 1514
#: One GSO packet: a burst below it stalls fast classes (measured: 17 % lost at 5 Gbit/s).
_GSO_BYTES = 65_536


def classid(major: int, minor: int) -> int:
    """``0x5100, 0x2a`` to ``0x5100002a``: mark and tc classid at once."""
    return (major << 16) | minor


def format_classid(value: int) -> str:
    """A classid as tc prints it: ``5100:2a``."""
    return f"{value >> 16:x}:{value & MINOR_MASK:x}"


def usable_minor(major: int, minor: int) -> bool:
    """Whether a user may have this minor.

    A leaf qdisc gets its class's minor as handle, so the minor that equals the root's own
    handle would name two qdiscs.
    """
    return FIRST_USER_MINOR <= minor <= LAST_USER_MINOR and minor != major


class HtbClass(NamedTuple):
    """Parameters of one HTB class; rates in bit/s, sizes in bytes.  See tc-htb(8)."""

    rate_bps: int
    ceil_bps: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int
    prio: int = 0


def burst_bytes(rate_bps: int) -> int:
    """Burst of a class: 2 ms of the rate, at least three frames, above 1 Gbit/s one GSO packet."""
    floor = _GSO_BYTES if rate_bps >= _GBIT else 3 * _MTU_FRAME
    return max(rate_bps // 8 // 500, floor)


def user_class(limit_bps: int, weight: int = 1, prio: int = 0) -> HtbClass:
    """The class of one user whose limit is ``limit_bps``.

    The limit is the ceil.  The guaranteed rate is one hundredth of it: guarantees of all users
    together must fit into the node, or fairness ends when it is needed; above their guarantee
    users share what the node has by ``quantum``.
    """
    rate_bps = min(limit_bps, max(limit_bps // 100, 8_000))
    quantum = min(max(limit_bps // 8 // 1000 * weight, _MTU_FRAME), 60_000)
    return HtbClass(
        rate_bps=rate_bps,
        ceil_bps=limit_bps,
        burst_bytes=burst_bytes(rate_bps),
        cburst_bytes=burst_bytes(limit_bps),
        quantum_bytes=quantum,
        prio=prio,
    )


def shared_class(rate_bps: int) -> HtbClass:
    """A class that people share (the node's ceiling, unclassified traffic): rate equals ceil."""
    burst = burst_bytes(rate_bps)
    return HtbClass(rate_bps, rate_bps, burst, burst, 60_000)
