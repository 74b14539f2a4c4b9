"""Which qdiscs there are, and the options of ours: rtnetlink packed by hand.

Source of the numbers: include/uapi/linux/{rtnetlink,pkt_sched}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping

from ...core.htb import CEIL_MINOR, MINOR_MASK, UNCLASSIFIED_MINOR
from ...core.plan.handles import SPLIT_LIMIT, Qdisc
from .netlink import Netlink, attr, attrs

_GETQDISC = 38
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_KIND, _OPTIONS = 1, 2
_HTB_INIT = 2
_HTB_GLOB = struct.Struct("=5I")  # version, rate2quantum, defcls, debug, direct_pkts
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
# tc_tbf_qopt: two tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), then limit,
# buffer, mtu
_TBF_OPT = struct.Struct("=BBHhHI 12x III")
_TBF_LIMIT_AT = 24
#: Bytes a second; at this rate psched_l2t_ns gives no packet any time.
_NO_RATE = 10**18
_SHARED = (CEIL_MINOR, UNCLASSIFIED_MINOR)
_U32_MAX, _ETHERNET = 0xFFFFFFFF, 1  # TC_LINKLAYER_ETHERNET


def read_qdiscs(netlink: Netlink, names: Mapping[int, str], majors: Collection[int]) -> list[Qdisc]:
    """The qdiscs of all devices; of the leaves below roots with ``majors`` only the shared one's,
    because there may be thousands: 5,000 take 5 ms here, and 0.3 s in pyroute2.

    What is below minor 1 is no leaf, but the tree of a splitter.
    """

    def qdisc(data: bytes) -> Qdisc | None:
        _family, index, handle, parent, _info = _TCMSG.unpack_from(data)
        minor = parent & MINOR_MASK
        if index not in names or (parent >> 16 in majors and minor not in _SHARED):
            return None
        kind, options, default, limit = "", b"", 0, 0
        for number, start, end in attrs(data, _TCMSG.size):
            if number == _KIND:
                kind = data[start : end - 1].decode()
            elif number == _OPTIONS:
                options = data[start:end]
        if kind == "htb":
            for number, start, _end in attrs(options):
                if number == _HTB_INIT:
                    _version, quotient, default, _, _ = _HTB_GLOB.unpack_from(options, start)
                    options = tree_options(default, quotient)
                    break
        elif kind == "tbf":
            limit = _splitter_limit(options)
        return Qdisc(names[index], kind, handle, parent, options, default, limit)

    return netlink.dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "reading qdiscs", qdisc)


def tree_options(default: int, rate2quantum: int = 10) -> bytes:
    """TCA_OPTIONS of an HTB whose default class has the minor ``default``."""
    # The kernel shows version 0x30011 and accepts only 3: what it shows cannot be given back.
    return attr(_HTB_INIT, _HTB_GLOB.pack(3, rate2quantum, default, 0, 0))


def splitter_options(split_bytes: int) -> bytes:
    """TCA_OPTIONS of a TBF that splits packets of more than ``split_bytes`` into frames.

    Its rate is never reached (tbf_segment in net/sched/sch_tbf.c is all that is wanted of it).
    """
    parms = _TBF_OPT.pack(0, _ETHERNET, 0, 0, 0, _U32_MAX, split_bytes * SPLIT_LIMIT, 0, 0)
    rate = attr(_TBF_RATE64, _U64.pack(_NO_RATE))
    return attr(_TBF_PARMS, parms) + rate + attr(_TBF_BURST, _U32.pack(split_bytes))


def _splitter_limit(options: bytes) -> int:
    """The limit of a TBF of our making, 0 of others: nobody else gives one such a rate."""
    at = {number: start for number, start, _end in attrs(options)}
    if _TBF_RATE64 not in at or _U64.unpack_from(options, at[_TBF_RATE64])[0] != _NO_RATE:
        return 0
    return int(_U32.unpack_from(options, at[_TBF_PARMS] + _TBF_LIMIT_AT)[0])
