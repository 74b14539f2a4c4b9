"""Classes and their leaf qdiscs: rtnetlink packed by hand.

Source of the numbers: include/uapi/linux/{rtnetlink,pkt_sched}.h, net/sched/sch_htb.c.  Adding
or deleting a class walks all classes of the qdisc; changing one does not.

Longer than 400 lines: messages and what sends them share their numbers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import add
from sys import intern
from typing import NamedTuple

from ...core.class_table import ClassTable
from ...core.htb import (
    MINOR_MASK,
    TARGET_US,
    TICK_NS,
    UNCLASSIFIED_MINOR,
    ClassState,
    HtbClass,
    classid,
    format_classid,
)
from ...core.minor_table import MinorTable
from ...core.plan.handles import INGRESS, leads_away
from ...errors import KernelRefused
from .filter_list import TcFilter, read_filters
from .netlink import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Collected,
    Decoded,
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
_HTB_PARMS, _HTB_RATE64, _HTB_CEIL64 = 1, 6, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3
# tc_htb_opt: two tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), then
# buffer, cbuffer, quantum, level, prio
_HTB_OPT = struct.Struct("=BBHhHI BBHhHI IIIII")
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel then needs no rate table
_U32_MAX = 0xFFFFFFFF
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=III")

_FQ_CODEL_TARGET, _FQ_CODEL_FLOWS = 1, 5
#: 64 buckets keep a user's leaf at 4.8 KiB instead of 71 KiB; strangers share the common one.
_USER_FLOWS, _SHARED_FLOWS = 64, 1_024


#: What makes a message, and what it does, for people.
Request = tuple[Encoder, str]


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


def encode_leaf(
    seq: int, key: ClassKey, kind: str, target_us: int, flags: int = 0, handle: int = 0
) -> bytes:
    """Request to change the leaf qdisc ``kind`` of a class, or to add it (CREATE | EXCL).

    ``target_us`` is for fq_codel.  The handle, if none is given, is the class's minor: the kernel
    has few handles to give away by itself.
    """
    body = attr(_KIND, kind.encode() + b"\0")
    if kind == "fq_codel":
        options = attr(_FQ_CODEL_TARGET, struct.pack("=I", target_us))
        if flags & NLM_F_CREATE:
            flows = _SHARED_FLOWS if key.minor == UNCLASSIFIED_MINOR else _USER_FLOWS
            options += attr(_FQ_CODEL_FLOWS, struct.pack("=I", flows))
        body += nest(_OPTIONS, options)
    parent = classid(key.major, key.minor)
    handle = handle or classid(key.minor, 0)
    return _message(_NEWQDISC, flags, seq, key.ifindex, handle, parent, body)


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


def _state(payload: bytes) -> ClassState | None:
    return found[3] if (found := decode_class(payload)) else None


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


def add_states(one: ClassState, other: ClassState) -> ClassState:
    """What two trees say of a class that each of them has."""
    sums = map(add, one[2:], other[2:])
    rates = {
        name: getattr(one.params, name) + getattr(other.params, name)
        for name in ("rate_bps", "ceil_bps")
    }
    return ClassState(one.parent, one.params._replace(**rates), *sums)


def _first(one: HtbClass, _other: HtbClass) -> HtbClass:
    return one


class Tc:
    """The classes of this network namespace."""

    def __init__(self) -> None:
        self.netlink = Netlink(socket.NETLINK_ROUTE)

    def close(self) -> None:
        """Release the socket."""
        self.netlink.close()

    # Each of several trees has the classes that all share: of these it is the sum, as of one tree.

    def classes(self, ifindex: int, major: int, trees: int = 1) -> dict[int, ClassState]:
        """{minor: state} of the classes under root ``major:`` on one interface."""
        return self._classes(ifindex, major, trees, _state, dict, add_states)

    def class_table(self, ifindex: int, major: int, trees: int = 1) -> ClassTable:
        """The same in a fifth of the memory, for what keeps it."""
        return self._classes(ifindex, major, trees, _state, ClassTable, add_states)

    def sent_bytes(self, ifindex: int, major: int, trees: int = 1) -> MinorTable:
        """{minor: bytes sent}: less than half the time of `classes`, a tenth of the memory."""
        return self._classes(ifindex, major, trees, decode_sent, MinorTable, add)

    def params(self, ifindex: int, major: int, trees: int = 1) -> dict[int, HtbClass]:
        """{minor: parameters} of the classes: half the time of `classes`; of those that all share
        the first tree's."""
        # Thousands of users of one plan share one object.
        shared: dict[HtbClass, HtbClass] = {}

        def params(answer: bytes) -> HtbClass | None:
            found = decode_params(answer)
            return shared.setdefault(found, found) if found else None

        return self._classes(ifindex, major, trees, params, dict, _first)

    def _classes(
        self,
        ifindex: int,
        major: int,
        trees: int,
        decode: Callable[[bytes], Decoded | None],
        make: Callable[[Iterator[tuple[int, Decoded]]], Collected],
        joined: Callable[[Decoded, Decoded], Decoded],
    ) -> Collected:
        """{minor: what ``decode`` makes of it} of the classes under ``major:`` on an interface, or
        under so many trees from there on; ``joined`` of those that are in each of them."""
        if trees == 1:
            return self._of_tree(ifindex, major, decode, make)
        found: dict[int, Decoded] = {}
        for each in range(major, major + trees):
            pairs: list[tuple[int, Decoded]] = self._of_tree(ifindex, each, decode, list)
            for minor, decoded in pairs:
                found[minor] = joined(found[minor], decoded) if minor in found else decoded
        return make(iter(found.items()))

    def _of_tree(
        self,
        ifindex: int,
        major: int,
        decode: Callable[[bytes], Decoded | None],
        make: Callable[[Iterator[tuple[int, Decoded]]], Collected],
    ) -> Collected:
        # By root, or the kernel would also list fq_codel's flows as classes.
        payload = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, classid(major, 0), 0)

        def one(answer: bytes) -> tuple[int, Decoded] | None:
            handle = _TCMSG.unpack_from(answer)[2]
            if handle >> 16 != major:
                return None
            decoded = decode(answer)
            return None if decoded is None else (handle & MINOR_MASK, decoded)

        what = f"reading classes of interface {ifindex}"
        return self.netlink.collect(_GETTCLASS, payload, what, one, make)

    def leaves(
        self, ifindexes: tuple[int, ...], major: int, trees: int = 1
    ) -> tuple[dict[int, str], ...]:
        """{minor: kind} of the leaf qdiscs of classes under root ``major:`` (or so many trees from
        there on), for each interface."""
        majors = range(major, major + trees)

        def leaf(answer: bytes) -> tuple[int, int, str] | None:
            _family, index, handle, parent, _info = _TCMSG.unpack_from(answer)
            if parent >> 16 not in majors or parent & MINOR_MASK != handle >> 16:
                return None
            if index not in ifindexes:
                return None
            start, end = find_attr(answer, _KIND, _TCMSG.size, len(answer))
            return index, handle >> 16, intern(answer[start : end - 1].decode("ascii"))

        def by_device(leaves: Iterator[tuple[int, int, str]]) -> tuple[dict[int, str], ...]:
            found: dict[int, dict[int, str]] = {ifindex: {} for ifindex in ifindexes}
            for index, minor, kind in leaves:
                found[index][minor] = kind
            return tuple(found.values())

        request = _TCMSG.pack(0, 0, 0, 0, 0)
        return self.netlink.collect(_GETQDISC, request, "reading qdiscs", leaf, by_device)

    def shared_classes(
        self, ifindex: int, major: int, minors: tuple[int, ...]
    ) -> dict[int, HtbClass]:
        """{minor: class} of those of ``minors`` that exist.

        Read from a dump, of which users' classes are skipped: the answer to a single
        RTM_GETTCLASS goes to all listeners, who take it for a change.
        """

        def params(answer: bytes) -> HtbClass | None:
            minor = _TCMSG.unpack_from(answer)[2] & MINOR_MASK
            return decode_params(answer) if minor in minors else None

        return self._of_tree(ifindex, major, params, dict)

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


def add_leaf(key: ClassKey, leaf: str, target_us: int, handle: int = 0) -> Request:
    """Request that gives a class the leaf qdisc ``leaf``; EEXIST if it has one."""
    name = format_classid(classid(key.major, key.minor))
    return (
        lambda s: encode_leaf(s, key, leaf, target_us, ADD, handle),
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
