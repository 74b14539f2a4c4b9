"""Qdiscs and filters: rtnetlink packed by hand (classes are in tc.py).

Source of the numbers: include/uapi/linux/{pkt_sched,pkt_cls}.h and tc_act/*.h.  pyroute2 0.9
knows neither flower nor act_ctinfo nor filter chains.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.htb import MINOR_MASK, HtbClass, classid
from ..core.plan.layout import (
    INGRESS_PARENT,
    ROOT_PARENT,
    SPLIT_LIMIT,
    Filter,
    Key,
    Qdisc,
    leads_away,
    splitter,
)
from .links import send
from .packed.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attr, attrs, nest
from .packed.tc import decode_class

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_GETTCLASS = 42
_NEWFILTER, _DELFILTER, _GETFILTER = 44, 45, 46
_NLM_F_REPLACE = 0x100
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_PORT = struct.Struct(">H")
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
_HTB_INIT = 2
_HTB_GLOB = struct.Struct("=5I")  # version, rate2quantum, defcls, debug, direct_pkts
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
# tc_tbf_qopt: two tc_ratespec (the first as in tc.py), then limit, buffer, mtu
_TBF_OPT = struct.Struct("=BBHhHI 12x III")
_TBF_LIMIT_AT = 24
#: Bytes a second; at this rate psched_l2t_ns gives no packet any time.
_NO_RATE = 10**18
_U32_MAX, _ETHERNET = 0xFFFFFFFF, 1
_CLSACT_HANDLE = 0xFFFF0000

_HOOKS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_PROTOCOLS = {"all": 0x0003, "ip": 0x0800, "ipv6": 0x86DD}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}

_FW_ACT, _FW_MASK = 4, 5
_FLOWER_ACT, _FLOWER_ETH_TYPE, _FLOWER_IP_PROTO, _FLOWER_FLAGS = 3, 8, 9, 22
_FLOWER_PORT = {6: (19, 36), 17: (21, 38)}  # destination port and its mask
_FLOWER_DST_MIN, _FLOWER_DST_MAX = 89, 90
_SKIP_HW = 1  # no card can offload act_ctinfo
_FLOWER_SILENT = (_FLOWER_ETH_TYPE, _FLOWER_FLAGS, 86)  # 86: in_hw_count

_ACT_KIND, _ACT_OPTIONS = 1, 2
_GEN = struct.Struct("=IIiii")  # tc_gen: index, capab, action, refcnt, bindcnt
_PIPE, _STOLEN, _GOTO = 3, 4, 2 << 28
_CTINFO_ACT, _CTINFO_CPMARK_MASK = 3, 7
_MIRRED_PARMS, _EGRESS_REDIR = 2, 1
_SKBEDIT_PARMS, _SKBEDIT_MARK = 2, 5


def _tcmsg(index: int, handle: int = 0, parent: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, index, handle, parent, info)


def qdiscs(netlink: Netlink, names: Mapping[int, str], skip: Mapping[int, int]) -> list[Qdisc]:
    """The qdiscs of all devices; leaves of roots with major ``m`` only where ``skip[m]`` is
    their minor, because there may be thousands of them."""
    found = []
    for data in netlink.dump(_GETQDISC, _tcmsg(0), "reading qdiscs"):
        _family, index, handle, parent, _info = _TCMSG.unpack_from(data)
        if index not in names or skip.get(parent >> 16, parent & 0xFFFF) != parent & 0xFFFF:
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
                    options = _htb_options(default, quotient)
                    break
        elif kind == "tbf":
            limit = _splitter_limit(options)
        found.append(Qdisc(names[index], kind, handle, parent, options, default, limit))
    return found


def _splitter_limit(options: bytes) -> int:
    """The limit of a TBF of our making, 0 of others: nobody else gives one such a rate."""
    at = {number: start for number, start, _end in attrs(options)}
    if _TBF_RATE64 not in at or _U64.unpack_from(options, at[_TBF_RATE64])[0] != _NO_RATE:
        return 0
    return int(_U32.unpack_from(options, at[_TBF_PARMS] + _TBF_LIMIT_AT)[0])


def _htb_options(default: int, rate2quantum: int = 10) -> bytes:
    # The kernel shows version 0x30011 and accepts only 3: what it shows cannot be given back.
    return attr(_HTB_INIT, _HTB_GLOB.pack(3, rate2quantum, default, 0, 0))


def set_splitter(netlink: Netlink, index: int, major: int, split_bytes: int) -> None:
    """Put a TBF that splits packets of more than ``split_bytes`` into frames in the place of
    whatever root qdisc there is; if it is one, change it, and nothing in it is lost.

    Its rate is never reached (tbf_segment in net/sched/sch_tbf.c is all that is wanted of it).
    """
    options = _TBF_OPT.pack(0, _ETHERNET, 0, 0, 0, _U32_MAX, split_bytes * SPLIT_LIMIT, 0, 0)
    options = attr(_TBF_PARMS, options) + attr(_TBF_RATE64, _U64.pack(_NO_RATE))
    options += attr(_TBF_BURST, _U32.pack(split_bytes))
    set_qdisc(netlink, index, Qdisc("", "tbf", splitter(major), ROOT_PARENT, options))


def set_tree(netlink: Netlink, index: int, major: int, default: int, split_bytes: int = 0) -> None:
    """Put an HTB below its splitter, or without one in the place of whatever root qdisc there is;
    EINVAL if that has the same handle."""
    parent = splitter(major) | 1 if split_bytes else ROOT_PARENT
    set_qdisc(netlink, index, Qdisc("", "htb", classid(major, 0), parent, _htb_options(default)))


def add_clsact(netlink: Netlink, index: int) -> None:
    """Make the clsact qdisc."""
    set_qdisc(netlink, index, Qdisc("", "clsact", _CLSACT_HANDLE, INGRESS_PARENT), NLM_F_EXCL)


def set_qdisc(netlink: Netlink, index: int, new: Qdisc, flags: int = _NLM_F_REPLACE) -> None:
    """Put a qdisc on interface ``index`` (its ``dev`` does not count)."""
    body = attr(_KIND, new.kind.encode() + b"\0")
    if new.options:
        body += nest(_OPTIONS, new.options)
    what = f"adding qdisc {new.kind} {new.handle >> 16:x}: to interface {index}"
    head = _tcmsg(index, new.handle, new.parent)
    send(netlink, _NEWQDISC, NLM_F_CREATE | flags, head + body, what)


def read_classes(
    netlink: Netlink, index: int, major: int, minors: tuple[int, ...]
) -> dict[int, HtbClass]:
    """{minor: class} of those of ``minors`` that exist.

    Read from a dump, of which users' classes are skipped: the answer to a single RTM_GETTCLASS goes
    to all listeners, who take it for a change.
    """
    found = {}
    what = f"reading classes of {major:x}: on interface {index}"
    for data in netlink.dump(_GETTCLASS, _tcmsg(index, 0, classid(major, 0)), what):
        if _TCMSG.unpack_from(data)[2] & MINOR_MASK in minors and (decoded := decode_class(data)):
            found[decoded[1] & MINOR_MASK] = decoded[3].params
    return found


def delete_qdisc(netlink: Netlink, index: int, parent: int, handle: int = 0) -> None:
    """Delete the qdisc at ``parent``, if given only that with ``handle``."""
    what = f"removing the qdisc at {parent:x} of interface {index}"
    send(netlink, _DELQDISC, 0, _tcmsg(index, handle, parent), what)


def _info(pref: int, protocol: str) -> int:
    return pref << 16 | socket.htons(_PROTOCOLS[protocol])


def add_filter(
    netlink: Netlink, key: Key, spec: Filter, major: int, indices: Mapping[str, int]
) -> None:
    """Make a filter; ``indices`` are interface numbers by name."""
    _, dev, hook, chain, pref, protocol, handle = key
    body = attr(_KIND, spec.kind.encode() + b"\0") + _options(spec, protocol, indices)
    if chain:
        body += attr(_CHAIN, _U32.pack(chain))
    head = _tcmsg(indices[dev], handle, _parent(hook, major), _info(pref, protocol))
    what = f"adding filter {spec.kind} {pref} to {hook} of {dev}"
    send(netlink, _NEWFILTER, NLM_F_CREATE | NLM_F_EXCL, head + body, what)


def delete_filter(
    netlink: Netlink, key: Key, spec: Filter, major: int, indices: Mapping[str, int]
) -> None:
    """Delete one filter, or with handle 0 all of its preference."""
    _, dev, hook, chain, pref, protocol, handle = key
    body = attr(_KIND, spec.kind.encode() + b"\0")
    if chain:
        body += attr(_CHAIN, _U32.pack(chain))
    head = _tcmsg(indices[dev], handle, _parent(hook, major), _info(pref, protocol))
    what = f"removing filter {spec.kind} {pref} from {hook} of {dev}"
    send(netlink, _DELFILTER, 0, head + body, what)


def stop_redirecting(netlink: Netlink, index: int, major: int) -> int:
    """Delete our filters that lead packets away from interface ``index``; returns how many."""
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return 0  # the interface is gone, and its filters with it
    found = [
        (key, spec)
        for key, spec in filters(index, "ingress", major, {index: name})
        if leads_away(key, spec)
    ]
    for key, spec in found:
        delete_filter(netlink, key, spec, major, {name: index})
    return len(found)


def _parent(hook: str, major: int) -> int:
    return _HOOKS.get(hook, classid(major, 0))


def _options(spec: Filter, protocol: str, indices: Mapping[str, int]) -> bytes:
    actions = [
        nest(number, *_action(action, indices)) for number, action in enumerate(spec.actions, 1)
    ]
    if spec.kind == "fw":
        if not spec.match:
            return b""  # without any option cls_fw takes the mark itself as classid
        return nest(_OPTIONS, attr(_FW_MASK, _U32.pack(spec.match[0])), nest(_FW_ACT, *actions))
    match = attr(_FLOWER_FLAGS, _U32.pack(_SKIP_HW))
    if protocol != "all":
        match += attr(_FLOWER_ETH_TYPE, _PORT.pack(_PROTOCOLS[protocol]))
    if spec.match:
        number, low, high = spec.match
        match += attr(_FLOWER_IP_PROTO, bytes([number]))
        if low == high:
            port, mask = _FLOWER_PORT[number]
            match += attr(port, _PORT.pack(low)) + attr(mask, b"\xff\xff")
        else:
            match += attr(_FLOWER_DST_MIN, _PORT.pack(low))
            match += attr(_FLOWER_DST_MAX, _PORT.pack(high))
    return nest(_OPTIONS, match, nest(_FLOWER_ACT, *actions))


def _action(action: tuple[Any, ...], indices: Mapping[str, int]) -> tuple[bytes, bytes]:
    if action[0] == "ctinfo":
        kind, verdict = b"ctinfo\0", _GOTO | action[2]
        body = attr(_CTINFO_ACT, _GEN.pack(0, 0, verdict, 0, 0))
        body += attr(_CTINFO_CPMARK_MASK, _U32.pack(action[1]))
    elif action[0] == "mark":
        kind = b"skbedit\0"
        body = attr(_SKBEDIT_PARMS, _GEN.pack(0, 0, _PIPE, 0, 0))
        body += attr(_SKBEDIT_MARK, _U32.pack(action[1]))
    else:
        kind = b"mirred\0"
        target = struct.pack("=II", _EGRESS_REDIR, indices[action[1]])
        body = attr(_MIRRED_PARMS, _GEN.pack(0, 0, _STOLEN, 0, 0) + target)
    return attr(_ACT_KIND, kind), nest(_ACT_OPTIONS, body)


def _dump(request: bytes, what: str) -> list[bytes]:
    """Payloads of a dump of filters.

    The kernel ends a dump that meets cls_fw without handles (fw_walk) with EMSGSIZE, as if it
    had run out of space; tc prints "Buffer too small for object".  What came before is whole,
    and our fw filter has the last preference, so that nothing comes after it.
    """
    netlink = Netlink(socket.NETLINK_ROUTE)
    try:
        return list(netlink.dump(_GETFILTER, request, what, ends=errno.EMSGSIZE))
    finally:
        netlink.close()


def filters(
    index: int, hook: str, major: int, names: Mapping[int, str]
) -> Iterator[tuple[Key, Filter]]:
    """The filters at one hook of a device (``root``: of the HTB with this major)."""
    request = _tcmsg(index, 0, _parent(hook, major))
    for data in _dump(request, f"reading filters at {hook} of {names[index]}"):
        _family, _index, handle, _parent_id, info = _TCMSG.unpack_from(data)
        kind, chain, options = "", 0, b""
        for number, start, end in attrs(data, _TCMSG.size):
            if number == _KIND:
                kind = data[start : end - 1].decode()
            elif number == _CHAIN:
                (chain,) = _U32.unpack_from(data, start)
            elif number == _OPTIONS:
                options = data[start:end]
        # Each preference is listed once with handle 0 as a heading, then its filters.
        # cls_fw without handles is only the heading.
        if handle == 0 and not (kind == "fw" and hook == "root"):
            continue
        number = socket.ntohs(info & 0xFFFF)
        protocol = _PROTOCOL_NAMES.get(number, f"0x{number:04x}")
        yield (
            ("filter", names[index], hook, chain, info >> 16, protocol, handle),
            _decode(kind, options, names),
        )


def _decode(kind: str, options: bytes, names: Mapping[int, str]) -> Filter:
    fields = {number: options[start:end] for number, start, end in attrs(options)}
    if kind == "fw":
        actions = fields.pop(_FW_ACT, b"")
        mask = fields.pop(_FW_MASK, b"")
        match: tuple[Any, ...] = _U32.unpack(mask) if actions else ()
    elif kind == "flower":
        actions = fields.pop(_FLOWER_ACT, b"")
        match = _decode_flower(fields)
    else:
        return Filter(kind, ("?",))
    if fields:  # something that we never write
        match += tuple(sorted(fields))
    done = tuple(_decode_action(actions, a, b, names) for _number, a, b in attrs(actions))
    return Filter(kind, match, done)


def _decode_flower(fields: dict[int, bytes]) -> tuple[Any, ...]:
    for number in _FLOWER_SILENT:
        fields.pop(number, None)
    if _FLOWER_IP_PROTO not in fields:
        return ()
    proto = fields.pop(_FLOWER_IP_PROTO)[0]
    port, mask = _FLOWER_PORT.get(proto, (0, 0))
    if fields.get(mask) == b"\xff\xff":
        fields.pop(mask)
        low = high = fields.pop(port)
    else:
        low, high = fields.pop(_FLOWER_DST_MIN, b"\0\0"), fields.pop(_FLOWER_DST_MAX, b"\0\0")
    return proto, *_PORT.unpack(low), *_PORT.unpack(high)


def _decode_action(data: bytes, start: int, end: int, names: Mapping[int, str]) -> tuple[Any, ...]:
    outer = {number: data[a:b] for number, a, b in attrs(data, start, end)}
    options = outer.get(_ACT_OPTIONS, b"")
    kind = outer[_ACT_KIND].rstrip(b"\0").decode()
    fields = {number: options[a:b] for number, a, b in attrs(options)}
    if kind == "ctinfo" and _CTINFO_CPMARK_MASK in fields:
        verdict = _GEN.unpack_from(fields[_CTINFO_ACT])[2]
        if verdict & ~0xFFFFFFF == _GOTO:
            return ("ctinfo", *_U32.unpack(fields[_CTINFO_CPMARK_MASK]), verdict & 0xFFFFFFF)
    if kind == "skbedit" and _SKBEDIT_MARK in fields:
        verdict = _GEN.unpack_from(fields[_SKBEDIT_PARMS])[2]
        if verdict == _PIPE:
            return ("mark", *_U32.unpack(fields[_SKBEDIT_MARK]))
    if kind == "mirred":
        direction, index = struct.unpack_from("=II", fields[_MIRRED_PARMS], _GEN.size)
        if direction == _EGRESS_REDIR:
            return ("redirect", names.get(index, f"#{index}"))
    return (kind, "?")
