"""Classes and what is listed by the thousand, qdiscs and filters: rtnetlink packed by hand.

Source of the numbers: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h, net/sched/sch_htb.c.
Adding or deleting a class walks all classes of the qdisc; changing one does not.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from sys import intern
from typing import NamedTuple

from ...core.htb import (
    MINOR_MASK,
    TARGET_US,
    TICK_NS,
    UNCLASSIFIED_MINOR,
    HtbClass,
    classid,
    format_classid,
)
from ...core.plan.objects import INGRESS, ROOT, SPLIT_LIMIT, Qdisc, leads_away
from ...errors import KernelRefused
from .netlink import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Encoder,
    Netlink,
    attr,
    attrs,
    find_attr,
    nest,
)

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTCLASS, _DELTCLASS, _GETTCLASS = 40, 41, 42
_DELTFILTER, _GETTFILTER = 45, 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_KIND, _OPTIONS, _STATS2, _CHAIN = 1, 2, 7, 11
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_HTB_GLOB = struct.Struct("=5I")  # version, rate2quantum, defcls, debug, direct_pkts
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
# tc_tbf_qopt: two tc_ratespec (as in tc_htb_opt), then limit, buffer, mtu
_TBF_OPT = struct.Struct("=BBHhHI 12x III")
_TBF_LIMIT_AT = 24
#: Bytes a second; at this rate psched_l2t_ns gives no packet any time.
_NO_RATE = 10**18
_STATS_BASIC, _STATS_QUEUE = 1, 3
# tc_htb_opt: two tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), then
# buffer, cbuffer, quantum, level, prio
_HTB_OPT = struct.Struct("=BBHhHI BBHhHI IIIII")
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel then needs no rate table
_U32_MAX = 0xFFFFFFFF
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=III")
#: Parents of filters at the hooks of clsact.
_HOOKS = {INGRESS: 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_FQ_CODEL_TARGET, _FQ_CODEL_FLOWS = 1, 5
#: 64 buckets keep a user's leaf at 4.8 KiB instead of 71 KiB; strangers share the common one.
_USER_FLOWS, _SHARED_FLOWS = 64, 1_024


#: What makes a message, and what it does, for people.
Request = tuple[Encoder, str]


class ClassState(NamedTuple):
    """What the kernel says about one HTB class; counters since its creation."""

    parent: int
    params: HtbClass
    sent_bytes: int
    sent_packets: int
    drops: int
    backlog_bytes: int


class TcFilter(NamedTuple):
    """A filter as far as all kinds are alike; ``classid`` is where it sends packets (0: it says
    not), ``payload`` the whole message."""

    parent: int
    chain: int
    pref: int
    protocol: int  # in network byte order, as rtnetlink has it
    handle: int
    kind: str
    classid: int
    payload: bytes


class ClassKey(NamedTuple):
    """Where a class is: interface index, major of the root, minor."""

    ifindex: int
    major: int
    minor: int


def _ticks(size_bytes: int, rate_bps: int) -> int:
    """Time to send ``size_bytes`` at ``rate_bps`` in kernel ticks, as HTB wants its bursts."""
    return min(size_bytes * 8 * 1_000_000_000 // rate_bps // TICK_NS, _U32_MAX)


def _bytes(ticks: int, rate_bps: int) -> int:
    return -(-ticks * TICK_NS * rate_bps // (8 * 1_000_000_000))


def _options(params: HtbClass) -> bytes:
    rate, ceil = params.rate_bps // 8, params.ceil_bps // 8
    body = attr(
        _HTB_PARMS,
        _HTB_OPT.pack(
            0,
            _ETHERNET,
            0,
            0,
            0,
            min(rate, _U32_MAX),
            0,
            _ETHERNET,
            0,
            0,
            0,
            min(ceil, _U32_MAX),
            _ticks(params.burst_bytes, params.rate_bps),
            _ticks(params.cburst_bytes, params.ceil_bps),
            params.quantum_bytes,
            0,
            params.prio,
        ),
    )
    if rate > _U32_MAX:
        body += attr(_HTB_RATE64, struct.pack("=Q", rate))
    if ceil > _U32_MAX:
        body += attr(_HTB_CEIL64, struct.pack("=Q", ceil))
    return body


def _message(
    kind: int,
    flags: int,
    seq: int,
    ifindex: int,
    handle: int,
    parent: int,
    body: bytes,
    info: int = 0,
) -> bytes:
    length = HEADER.size + _TCMSG.size + len(body)
    return (
        HEADER.pack(length, kind, NLM_F_REQUEST | flags, seq, 0)
        + _TCMSG.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)
        + body
    )


def encode_class(
    seq: int, key: ClassKey, parent_minor: int, params: HtbClass, flags: int = 0
) -> bytes:
    """Request to change a class, or with NLM_F_CREATE | NLM_F_EXCL to add it."""
    body = attr(_KIND, b"htb\0") + nest(_OPTIONS, _options(params))
    parent = classid(key.major, parent_minor)
    return _message(
        _NEWTCLASS, flags, seq, key.ifindex, classid(key.major, key.minor), parent, body
    )


def encode_class_delete(seq: int, key: ClassKey) -> bytes:
    """Request to delete a class; its leaf goes with it.  EBUSY while it has children."""
    return _message(_DELTCLASS, 0, seq, key.ifindex, classid(key.major, key.minor), 0, b"")


def encode_leaf(seq: int, key: ClassKey, kind: str, target_us: int, flags: int = 0) -> bytes:
    """Request to change the leaf qdisc ``kind`` of a class, or to add it (CREATE | EXCL).

    ``target_us`` is for fq_codel.  The handle is the class's minor: the kernel has few handles to
    give away by itself.
    """
    body = attr(_KIND, kind.encode() + b"\0")
    if kind == "fq_codel":
        options = attr(_FQ_CODEL_TARGET, struct.pack("=I", target_us))
        if flags & NLM_F_CREATE:
            flows = _SHARED_FLOWS if key.minor == UNCLASSIFIED_MINOR else _USER_FLOWS
            options += attr(_FQ_CODEL_FLOWS, struct.pack("=I", flows))
        body += nest(_OPTIONS, options)
    parent = classid(key.major, key.minor)
    return _message(_NEWQDISC, flags, seq, key.ifindex, classid(key.minor, 0), parent, body)


def decode_params(payload: bytes) -> HtbClass | None:
    """The parameters of an HTB class from its message; None for other kinds."""
    start, end = find_attr(payload, _KIND, _TCMSG.size, len(payload))
    if payload[start:end] != b"htb\0":
        return None
    start, end = find_attr(payload, _OPTIONS, end, len(payload))
    return _decode_options(payload[start:end])


def decode_class(payload: bytes) -> tuple[int, int, int, ClassState] | None:
    """(ifindex, classid, leaf handle, state) of an HTB class message; None for other kinds."""
    _family, ifindex, handle, parent, info = _TCMSG.unpack_from(payload)
    params = decode_params(payload)
    if params is None:
        return None
    sent_bytes = sent_packets = drops = backlog = 0
    first, last = find_attr(payload, _STATS2, _TCMSG.size, len(payload))
    start, end = find_attr(payload, _STATS_BASIC, first, last)
    if start < end:
        sent_bytes, sent_packets = _BASIC.unpack_from(payload, start)
    start, end = find_attr(payload, _STATS_QUEUE, first, last)
    if start < end:
        _qlen, backlog, drops = _QUEUE.unpack_from(payload, start)
    state = ClassState(parent, params, sent_bytes, sent_packets, drops, backlog)
    return ifindex, handle, info, state


@lru_cache(maxsize=1_024)
def _decode_options(options: bytes) -> HtbClass | None:
    """What a class's TCA_OPTIONS say.  Most users share those of a few plans."""
    params = None
    rate64 = ceil64 = 0
    for kind, start, _end in attrs(options):
        if kind == _HTB_PARMS:
            params = _HTB_OPT.unpack_from(options, start)
        elif kind == _HTB_RATE64:
            rate64 = _U64.unpack_from(options, start)[0]
        elif kind == _HTB_CEIL64:
            ceil64 = _U64.unpack_from(options, start)[0]
    if params is None:
        return None
    rate_bps, ceil_bps = max(params[5], rate64) * 8, max(params[11], ceil64) * 8
    burst, cburst = _bytes(params[12], rate_bps), _bytes(params[13], ceil_bps)
    return HtbClass(rate_bps, ceil_bps, burst, cburst, params[14], params[16])


def decode_sent(payload: bytes) -> int:
    """Bytes that a class has sent since its creation, from its message."""
    start, end = find_attr(payload, _STATS2, _TCMSG.size, len(payload))
    start, end = find_attr(payload, _STATS_BASIC, start, end)
    return int(_U64.unpack_from(payload, start)[0]) if start < end else 0


#: Attribute that holds the classid, by kind of filter (include/uapi/linux/pkt_cls.h).
_CLASSID_ATTR = {"fw": 1, "u32": 1, "flower": 1, "matchall": 1, "basic": 1, "bpf": 3}


def decode_filter(payload: bytes) -> TcFilter:
    """A filter from the payload of its message."""
    _family, _ifindex, handle, parent, info = _TCMSG.unpack_from(payload)
    kind, target, chain = "", 0, 0
    for number, start, end in attrs(payload, _TCMSG.size):
        if number == _KIND:
            kind = payload[start : end - 1].decode("ascii", "replace")
        elif number == _CHAIN:
            (chain,) = _U32.unpack_from(payload, start)
        elif number == _OPTIONS:
            for inner, at, stop in attrs(payload, start, end):
                if inner == _CLASSID_ATTR.get(kind) and stop - at == 4:
                    (target,) = _U32.unpack_from(payload, at)
    return TcFilter(parent, chain, info >> 16, info & 0xFFFF, handle, kind, target, payload)


def filter_parent(hook: str, major: int) -> int:
    """The parent of filters at a hook; ROOT is the HTB with this major."""
    return classid(major, 0) if hook == ROOT else _HOOKS[hook]


def read_filters(ifindex: int, hook: str, major: int) -> Iterator[TcFilter]:
    """The filters at one hook of a device.

    The kernel ends a dump that meets cls_fw without handles (fw_walk) with EMSGSIZE, as if it
    had run out of space; tc prints "Buffer too small for object".  What came before is whole, and
    our fw filter has the last preference: nothing comes after it.
    """
    request = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, filter_parent(hook, major), 0)
    what = f"reading filters at {hook} of interface {ifindex}"
    netlink = Netlink(socket.NETLINK_ROUTE)
    try:
        for payload in netlink.dump(_GETTFILTER, request, what, ends=errno.EMSGSIZE):
            found = decode_filter(payload)
            # Each preference is listed once with handle 0 as a heading, then its filters.
            # cls_fw without handles is only the heading.
            if found.handle or (found.kind == "fw" and hook == ROOT):
                yield found
    finally:
        netlink.close()


def read_qdiscs(netlink: Netlink, names: Mapping[int, str], majors: Collection[int]) -> list[Qdisc]:
    """The qdiscs of all devices; of the leaves below roots with ``majors`` only the shared one's,
    because there may be thousands: 5,000 take 5 ms here, and 0.3 s in pyroute2."""
    found = []
    for data in netlink.dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "reading qdiscs"):
        _family, index, handle, parent, _info = _TCMSG.unpack_from(data)
        minor = parent & MINOR_MASK
        if index not in names or (parent >> 16 in majors and minor != UNCLASSIFIED_MINOR):
            continue
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
        found.append(Qdisc(names[index], kind, handle, parent, options, default, limit))
    return found


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


class Tc:
    """The classes of this network namespace."""

    def __init__(self) -> None:
        self.netlink = Netlink(socket.NETLINK_ROUTE)

    def close(self) -> None:
        """Release the socket."""
        self.netlink.close()

    def classes(self, ifindex: int, major: int) -> dict[int, ClassState]:
        """{minor: state} of the classes under root ``major:`` on one interface."""
        return {
            minor: decoded[3]
            for minor, answer in self._classes(ifindex, major)
            if (decoded := decode_class(answer))
        }

    def sent_bytes(self, ifindex: int, major: int) -> dict[int, int]:
        """{minor: bytes sent}: less than half the time of `classes`."""
        return {minor: decode_sent(answer) for minor, answer in self._classes(ifindex, major)}

    def params(self, ifindex: int, major: int) -> dict[int, HtbClass]:
        """{minor: parameters} of the classes: half the time of `classes`."""
        return {
            minor: params
            for minor, answer in self._classes(ifindex, major)
            if (params := decode_params(answer))
        }

    def _classes(self, ifindex: int, major: int) -> Iterator[tuple[int, bytes]]:
        """Minor and message of each class under root ``major:`` on one interface."""
        # By root, or the kernel would also list fq_codel's flows as classes.
        payload = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, classid(major, 0), 0)
        what = f"reading classes of interface {ifindex}"
        for answer in self.netlink.dump(_GETTCLASS, payload, what):
            handle = _TCMSG.unpack_from(answer)[2]
            if handle >> 16 == major:
                yield handle & MINOR_MASK, answer

    def leaves(self, ifindexes: tuple[int, ...], major: int) -> tuple[dict[int, str], ...]:
        """{minor: kind} of the leaf qdiscs of classes under root ``major:``, for each interface."""
        found: dict[int, dict[int, str]] = {ifindex: {} for ifindex in ifindexes}
        for answer in self.netlink.dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), "reading qdiscs"):
            _family, index, handle, parent, _info = _TCMSG.unpack_from(answer)
            if index in found and parent == classid(major, handle >> 16):
                start, end = find_attr(answer, _KIND, _TCMSG.size, len(answer))
                found[index][handle >> 16] = intern(answer[start : end - 1].decode("ascii"))
        return tuple(found[ifindex] for ifindex in ifindexes)

    def shared_classes(
        self, ifindex: int, major: int, minors: tuple[int, ...]
    ) -> dict[int, HtbClass]:
        """{minor: class} of those of ``minors`` that exist.

        Read from a dump, of which users' classes are skipped: the answer to a single
        RTM_GETTCLASS goes to all listeners, who take it for a change.
        """
        return {
            minor: params
            for minor, answer in self._classes(ifindex, major)
            if minor in minors and (params := decode_params(answer))
        }

    def delete_filter(self, ifindex: int, which: TcFilter) -> None:
        """Delete one filter."""
        body = attr(_KIND, which.kind.encode() + b"\0")
        if which.chain:
            body += attr(_CHAIN, _U32.pack(which.chain))
        info = which.pref << 16 | which.protocol
        what = f"deleting filter pref {which.pref} handle {which.handle:#x}"

        def encode(seq: int) -> bytes:
            return _message(_DELTFILTER, 0, seq, ifindex, which.handle, which.parent, body, info)

        self.apply([(encode, what)])

    def stop_redirecting(self, ifindex: int, major: int) -> int:
        """Delete our filters that lead packets away from an interface; returns how many."""
        found = [
            item
            for item in read_filters(ifindex, INGRESS, major)
            if leads_away(item.chain, item.pref, item.kind)
        ]
        for item in found:
            self.delete_filter(ifindex, item)
        return len(found)

    def apply(self, requests: list[Request]) -> None:
        """Send requests (encoder, what it does); raises KernelRefused for the first that failed."""
        for _index, code, what in self.attempt(requests):
            raise KernelRefused(code, what)

    def attempt(self, requests: list[Request]) -> list[tuple[int, int, str]]:
        """Send requests; returns (index, errno, what) of those that failed, in order."""
        errors, _ = self.netlink.batch([encode for encode, _what in requests])
        return [(index, errors[index], requests[index][1]) for index in sorted(errors)]


ADD = NLM_F_CREATE | NLM_F_EXCL


def add_class(
    key: ClassKey, parent_minor: int, params: HtbClass, leaf: str, target_us: int = TARGET_US
) -> list[Request]:
    """Requests that make a class with its leaf."""
    name = format_classid(classid(key.major, key.minor))
    return [
        (lambda s: encode_class(s, key, parent_minor, params, ADD), f"adding class {name}"),
        add_leaf(key, leaf, target_us),
    ]


def change_class(key: ClassKey, parent_minor: int, params: HtbClass) -> Request:
    """Request that changes a class in place; queued packets stay."""
    name = format_classid(classid(key.major, key.minor))
    return (lambda s: encode_class(s, key, parent_minor, params), f"changing class {name}")


def add_leaf(key: ClassKey, leaf: str, target_us: int) -> Request:
    """Request that gives a class the leaf qdisc ``leaf``; EEXIST if it has one."""
    name = format_classid(classid(key.major, key.minor))
    return (
        lambda s: encode_leaf(s, key, leaf, target_us, ADD),
        f"adding leaf {leaf} of class {name}",
    )


def change_leaf(key: ClassKey, leaf: str, target_us: int) -> Request:
    """Request that changes a class's leaf qdisc in place; queued packets stay."""
    name = format_classid(classid(key.major, key.minor))
    return (
        lambda s: encode_leaf(s, key, leaf, target_us),
        f"changing leaf {leaf} of class {name}",
    )


def delete_leaf(key: ClassKey) -> Request:
    """Request that deletes a class's leaf qdisc and what is queued in it; ENOENT if it is gone."""
    name = format_classid(classid(key.major, key.minor))
    parent = classid(key.major, key.minor)
    return (
        lambda s: _message(_DELQDISC, 0, s, key.ifindex, classid(key.minor, 0), parent, b""),
        f"deleting the leaf of class {name}",
    )


def delete_class(key: ClassKey) -> Request:
    """Request that deletes a class; deleting one that is gone is ENOENT."""
    name = format_classid(classid(key.major, key.minor))
    return (lambda s: encode_class_delete(s, key), f"deleting class {name}")
