"""Numbers of the HTB trees: minors, marks and the parameters of a class.

One 32-bit number names a user everywhere: it is the conntrack mark, the skb mark and the tc
classid, ``(major << 16) | minor``.  cls_fw without handles takes the skb mark as the classid
itself (net/sched/cls_fw.c, fw_classify), so that no filter per user is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

ROOT_MINOR = 0x0000
CEIL_MINOR = 0x0001
FIRST_USER_MINOR = 0x0002
LAST_USER_MINOR = 0xFFFB
#: Classes that many share: restricted flows, newcomers when all minors are taken.
RESTRICTED_MINOR, SHARED_MINOR = 0xFFFC, 0xFFFD
UNCLASSIFIED_MINOR = 0xFFFE
#: In the marks of connections that were ended; no class has it.
ENDED_MINOR = 0xFFFF

TAG_MASK = 0xFFFF0000
MINOR_MASK = 0x0000FFFF
#: Set in the mark of a flow that was given away at its first packet and that no line has
#: confirmed yet.  Majors are below 8000:, so that this bit is never part of one.
PROVISIONAL = 0x80000000
#: With the tag it finds our marks of both kinds.
OURS_MASK = TAG_MASK & ~PROVISIONAL

#: HTB priority of a class that nobody owns at the moment: the kernel itself tells it apart.
PARKED_PRIO = 7

#: A class's turn when the node is full is ``weight`` times the smallest quantum at least.
MAX_WEIGHT = 32

_GBIT = 1_000_000_000
_MTU_FRAME = 1514
_FRAME_BITS = 8 * _MTU_FRAME
#: More at once is left to rates of which it is less than 2 ms.
_MAX_SLOW_BURST = 262_144
#: The largest packet: 64 KiB, and the headers of each of its frames (qdisc_pkt_len_init).
_MAX_QUANTUM = 70_000
#: Never another one: the kernel does not change it where a class has others below it.
_SHARED_QUANTUM = 60_000
#: Up to this ceiling packets are split into frames, as CAKE does up to 1 Gbit/s.  That costs 3 % of
#: a core up to 300 Mbit/s, 14 at 500, 40 to 47 at 900 (`make bench ONLY=split`).
_MAX_SPLIT_BPS = 500_000_000
#: A turn where they are: one frame, with tags.
_FRAME_TURN = 1_536
#: CoDel's target where nothing asks for a longer one, and its interval.
TARGET_US, _INTERVAL_US = 5_000, 100_000
#: What waits in the queues of a full node: two frames of each of 32 users.
_FULL_FRAMES = 2 * 32
#: The default guarantee is small enough that this many users' guarantees together stay below half
#: of the node's ceiling.
_GUARANTEED_USERS = 10_000
#: Below it a burst of three frames lasts longer than the kernel counts.
_MIN_GUARANTEE_BPS = 200
#: The kernel keeps bursts as times, in ticks of so many ns (PSCHED_SHIFT is 6).
TICK_NS = 64


def classid(major: int, minor: int) -> int:
    """``0x5100, 0x2a`` to ``0x5100002a``: mark and tc classid at once."""
    return (major << 16) | minor


def format_classid(value: int) -> str:
    """A classid as tc prints it: ``5100:2a``."""
    return f"{value >> 16:x}:{value & MINOR_MASK:x}"


def usable_minor(major: int, minor: int, trees: int = 1) -> bool:
    """Whether a user may have this minor.

    A leaf qdisc gets its class's minor as handle, so the minor that equals the handle of the tree
    or of its splitter would name two qdiscs.
    """
    return FIRST_USER_MINOR <= minor <= LAST_USER_MINOR and not is_handle(major, minor, trees)


def is_handle(major: int, minor: int, trees: int = 1) -> bool:
    """Whether a leaf's handle would be that of the tree or of its splitter; of several trees all
    handles with our tag are theirs."""
    if trees > 1:
        return minor >> 8 == major >> 8
    return minor in (major, major + 1)


class HtbClass(NamedTuple):
    """Parameters of one HTB class; rates in bit/s, sizes in bytes.  See tc-htb(8)."""

    rate_bps: int
    ceil_bps: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int
    prio: int = 0


class ClassState(NamedTuple):
    """What the kernel says about one HTB class; counters since its creation."""

    parent: int
    params: HtbClass
    sent_bytes: int
    sent_packets: int
    drops: int
    backlog_bytes: int


def sent_of(classes: Mapping[int, ClassState]) -> dict[int, int]:
    """{minor: bytes sent} of classes by minor."""
    return {minor: state.sent_bytes for minor, state in classes.items()}


def burst_bytes(rate_bps: int) -> int:
    """Burst of a class: 10 ms of the rate up to 256 KiB, but 2 ms at least, and three frames.

    All that a class can catch up when it wakes late is its burst.  Where a node waits some ms for
    its processor (a busy hypervisor), a burst of 2 ms lost 5 % of 20 Mbit/s and at times 20, one of
    10 ms 1 % and at times 4.  Below 2 ms fast classes stall: 17 % were lost at 5 Gbit/s.
    """
    bytes_per_s = rate_bps // 8
    return max(bytes_per_s // 500, min(bytes_per_s // 100, _MAX_SLOW_BURST), 3 * _MTU_FRAME)


def splits(ceil_bps: int) -> bool:
    """Whether a node with this ceiling splits packets into frames before they queue.

    TCP and network cards hand over packets of up to 64 KiB.  HTB sends a whole one in a turn, and
    what it is larger than the quantum is a debt that grows without bound while the class has the
    node alone (htb_dequeue_tree): on the full node the class then gets one packet in each turn.
    """
    return ceil_bps <= _MAX_SPLIT_BPS


class NodeCapacity(NamedTuple):
    """What the users' classes of a node have to share.

    ``max_weight``: the largest weight that the policy gives; ``shift``: guarantees that the policy
    names are halved so many times, see `guarantee_shift`.
    """

    ceil_bps: int = 100 * _GBIT
    max_weight: int = 1
    shift: int = 0


def user_class(
    limit_bps: int,
    weight: int = 1,
    prio: int = 0,
    guaranteed_bps: int | None = None,
    cburst_bytes: int | None = None,
    node: NodeCapacity = NodeCapacity(),  # noqa: B008 (immutable)
) -> HtbClass:
    """The class of one user whose limit is ``limit_bps``.

    The limit is the ceil.  HTB does not check that the guaranteed rates fit into the node, and
    fairness ends when they do not: half of the ceiling is for those that the policy names, the
    other half is divided among 10,000 users by weight.  Above their guarantee users share by
    ``quantum``: one frame where packets are split, so that who has one connection with two packets
    in the queue (tcp_small_queue_check) can use the turn; else the largest packet.
    """
    if guaranteed_bps is None:
        share_bps = node.ceil_bps // 2 // _GUARANTEED_USERS * weight // node.max_weight
        guaranteed_bps = max(share_bps, _MIN_GUARANTEE_BPS)
    else:
        guaranteed_bps = max(guaranteed_bps >> node.shift, _MIN_GUARANTEE_BPS)
    rate_bps = min(limit_bps, guaranteed_bps)
    turn = _FRAME_TURN if splits(node.ceil_bps) else _MAX_QUANTUM // node.max_weight
    return HtbClass(
        rate_bps=rate_bps,
        ceil_bps=limit_bps,
        burst_bytes=burst_bytes(rate_bps),
        cburst_bytes=cburst_bytes or burst_bytes(limit_bps),
        quantum_bytes=min(turn * weight, _MAX_QUANTUM),
        prio=prio,
    )


def leaf_target_us(limit_bps: int, node: NodeCapacity = NodeCapacity()) -> int:  # noqa: B008 (immutable)
    """CoDel's target of a user's leaf: 5 ms, or longer where a packet waits longer without a queue.

    A frame waits for the one before it, and on a full node for the turns of others.  CoDel would
    drop until one frame is left, and who has one connection could not use the own turn: 20 users
    on 20 Mbit/s moved a tenth less in all, and one alone did not fill the own limit.  Twice as much
    as this gained nothing.
    """
    frames_us = 2 * _FRAME_BITS * 1_000_000 // limit_bps
    full_us = _FULL_FRAMES * _FRAME_BITS * 1_000_000 // node.ceil_bps
    return max(TARGET_US, frames_us, min(full_us, _INTERVAL_US))


def guarantee_shift(promised_bps: int, ceil_bps: int) -> int:
    """How many times guarantees must be halved, so that their sum fits into half the ceiling."""
    shift = 0
    while promised_bps >> shift > ceil_bps // 2:
        shift += 1
    return shift


def shared_class(rate_bps: int) -> HtbClass:
    """A class that people share (the node's ceiling, unclassified traffic): rate equals ceil."""
    burst = burst_bytes(rate_bps)
    return HtbClass(rate_bps, rate_bps, burst, burst, _SHARED_QUANTUM)


@lru_cache(maxsize=1_024)
def same_class(have: HtbClass, want: HtbClass) -> bool:
    """Whether a class already is what it should be, as far as the kernel can express it.

    The kernel keeps rates in bytes a second and bursts in ticks.
    """
    return (
        have.rate_bps == want.rate_bps // 8 * 8
        and have.ceil_bps == want.ceil_bps // 8 * 8
        and have.quantum_bytes == want.quantum_bytes
        and have.prio == want.prio
        and _close(have.burst_bytes, want.burst_bytes, want.rate_bps)
        and _close(have.cburst_bytes, want.cburst_bytes, want.ceil_bps)
    )


def _close(have: int, want: int, rate_bps: int) -> bool:
    return abs(have - want) <= 2 + rate_bps * TICK_NS // 8_000_000_000
