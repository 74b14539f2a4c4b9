# SPDX-License-Identifier: MIT
"""What the kernel says of devices, their root qdiscs and the way out, by rtnetlink(7).

One file for two programs: the preflight, which runs on Python 3.8 before anything of ours is on the
node, and the agent, whose wheel gets the same file (agent/src/vff_qos/kernel/rtnetlink.py is a link
to it). Hence the standard library alone. Nothing of another program's output is read here: text of
/proc/net/route, `ip` and `tc` differs between versions, and names may hold anything but '/' and
white space.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

#: Two addresses far away that no network has at home and that VPNs do not route apart: those of
#: a.root-servers.net. Nothing is sent to them.
FAR = (
    (socket.AF_INET, "198.41.0.4"),
    (socket.AF_INET6, "2001:503:ba3e::2:30"),
)
#: What a route lookup says instead of a device: no route, unreachable, prohibit, blackhole (throw
#: goes on to the next table), or a kernel without this family.
_NO_WAY = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
    errno.EAFNOSUPPORT,
    errno.EOPNOTSUPP,
)
#: Kinds of devices through which nothing leaves the host.
_DEAD_ENDS = ("dummy", "ifb", "nlmon")

# linux/if.h, linux/if_arp.h, linux/if_link.h, linux/rtnetlink.h
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_ARPHRD_ETHER = 1
_IFNAMSIZ = 16
_ALTIFNAMSIZ = 128
_RTM_GETLINK, _RTM_GETROUTE, _RTM_GETQDISC, _RTM_GETTCLASS, _RTM_GETTFILTER = 18, 26, 38, 42, 46
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_ALT_IFNAME = 3, 18, 20, 53
_IFLA_NUM_TX_QUEUES = 31
_IFLA_INFO_KIND = 1
_RTA_DST, _RTA_OIF = 1, 4
_TCA_KIND, _TCA_OPTIONS, _TCA_CHAIN, _TCA_HTB_INIT = 1, 2, 11, 2
_TC_H_ROOT, _TC_H_INGRESS, _TC_H_FILTERS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF2
_RTN_UNICAST = 1
_IFINFO = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change
_ROUTE = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_TC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_HTB_GLOB = struct.Struct("=5I")  # version, rate2quantum, defcls, debug, direct_pkts
_NFGEN = struct.Struct("=BBH")  # family, version, resource (linux/netfilter/nfnetlink.h)
_NETLINK_NETFILTER = 12

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TYPE_MASK = 0x3FFF
_DUMP_TRIES = 8


class Link(NamedTuple):
    """A network device; ``kind`` is empty for hardware, ``alias`` a text that somebody set."""

    ifindex: int
    name: str
    kind: str
    alias: str
    flags: int
    hardware: int
    queues: int = 1

    @property
    def is_up(self) -> bool:
        """Whether somebody has switched it on."""
        return bool(self.flags & _IFF_UP)

    @property
    def leads_out(self) -> bool:
        """Whether packets can leave the host through it."""
        return not self.flags & _IFF_LOOPBACK and self.kind not in _DEAD_ENDS

    @property
    def is_tunnel(self) -> bool:
        """Whether it has no Ethernet header: WireGuard, tun, ppp, sit."""
        return self.hardware != _ARPHRD_ETHER


class TopQdisc(NamedTuple):
    """A qdisc that is nobody's child: ``hook`` is root, or ingress (clsact and ingress);
    ``default`` the minor of an HTB's default class."""

    ifindex: int
    kind: str
    major: int
    hook: str
    default: int = 0


class IngressFilter(NamedTuple):
    """A filter at ingress; ``protocol`` as in linux/if_ether.h."""

    kind: str
    chain: int
    pref: int
    protocol: int


def find_link(name: str) -> Link | None:
    """The device with this name or alternative name; None if there is none.  Raises OSError."""
    raw = name.encode("utf-8", "surrogateescape")
    if not 0 < len(raw) < _ALTIFNAMSIZ or b"\0" in raw:
        return None
    # The kernel finds alternative names under both attributes (from 5.5 on), but refuses a long one
    # under the first, and older ones know only that.
    attribute = _IFLA_IFNAME if len(raw) < _IFNAMSIZ else _IFLA_ALT_IFNAME
    try:
        return _link(_request(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0), (attribute, raw + b"\0")))
    except OSError as error:
        if error.errno == errno.ENODEV or (
            error.errno == errno.EINVAL and attribute == _IFLA_ALT_IFNAME
        ):
            return None
        raise


def all_links() -> list[Link]:
    """Every device of this network namespace.  Raises OSError."""
    return [_link(answer) for answer in _dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]


def uplink() -> Link | None:
    """The device through which an unmarked packet to the Internet leaves, by IPv4, else by IPv6.

    The kernel is asked as for a packet, so that metrics, routes for a type of service, rules and
    routes that reject have their say.  None if no packet would leave.  Raises OSError.
    """
    for family, address in FAR:
        index = _way(family, socket.inet_pton(family, address))
        if index is not None:
            link = _link(_request(_RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0)))
            if link.leads_out:
                return link
    return None


def top_qdiscs() -> list[TopQdisc]:
    """Root and ingress qdiscs of all devices.  Raises OSError."""
    hooks = {_TC_H_ROOT: "root", _TC_H_INGRESS: "ingress"}
    found = []
    for answer in _dump(_RTM_GETQDISC, _TC.pack(0, 0, 0, 0, 0)):
        _family, index, handle, parent, _info = _TC.unpack_from(answer)
        if parent in hooks:
            parts = dict(_attributes(answer[_TC.size :]))
            kind, default = _text(parts.get(_TCA_KIND, b"")), 0
            if kind == "htb":
                glob = dict(_attributes(parts.get(_TCA_OPTIONS, b""))).get(_TCA_HTB_INIT, b"")
                default = _HTB_GLOB.unpack_from(glob)[2] if glob else 0
            found.append(TopQdisc(index, kind, handle >> 16, hooks[parent], default))
    return found


def class_minors(ifindex: int, major: int) -> set[int]:
    """Minors of the classes below a root qdisc.  Raises OSError."""
    handles = (
        _TC.unpack_from(answer)[2]
        for answer in _dump(_RTM_GETTCLASS, _TC.pack(0, ifindex, 0, 0, 0))
    )
    return {handle & 0xFFFF for handle in handles if handle >> 16 == major}


def ingress_filters(ifindex: int) -> list[IngressFilter]:
    """The filters at ingress of a device, whichever qdisc holds them.  Raises OSError."""
    found = []
    for answer in _dump(_RTM_GETTFILTER, _TC.pack(0, ifindex, 0, _TC_H_FILTERS, 0)):
        _family, _index, handle, _parent, info = _TC.unpack_from(answer)
        parts = dict(_attributes(answer[_TC.size :]))
        chain = int.from_bytes(parts.get(_TCA_CHAIN, b""), sys.byteorder)
        # With handle 0 it is only the heading of a preference.
        if handle:
            kind = _text(parts.get(_TCA_KIND, b""))
            found.append(IngressFilter(kind, chain, info >> 16, socket.ntohs(info & 0xFFFF)))
    return found


def tree_majors(alias: str, links: list[Link], qdiscs: list[TopQdisc]) -> set[int]:
    """Major numbers of the trees on IFB devices with an alias.

    The agent knows its own IFB by that, whatever its name and the handle were when it was made.
    """
    ifbs = {link.ifindex for link in links if link.kind == "ifb" and link.alias == alias}
    # A tbf is what splits packets above a tree, and has one more than its major.
    return {
        # An mq is above several, whose majors begin at the upper byte of its own.
        qdisc.major & 0xFF00 if qdisc.kind == "mq" else qdisc.major - (qdisc.kind == "tbf")
        for qdisc in qdiscs
        if qdisc.ifindex in ifbs
        and qdisc.hook == "root"
        and (qdisc.kind in ("htb", "tbf") or (qdisc.kind == "mq" and qdisc.major & 0xFF == 0xFF))
    }


def tree_count(alias: str, links: list[Link], qdiscs: list[TopQdisc]) -> int:
    """How many trees there are on our IFB: one, or below an mq as many as it has queues."""
    ours = {link.ifindex: link for link in links if link.kind == "ifb" and link.alias == alias}
    many = [q.ifindex for q in qdiscs if q.ifindex in ours and (q.hook, q.kind) == ("root", "mq")]
    return max([ours[index].queues for index in many], default=1)


def nfnetlink_answers(subsystem: int, message: int) -> bool:
    """Whether this kernel has a part of netfilter: ``message`` is one that it answers at once.

    The kernel loads the module that serves ``subsystem`` if it can.  Raises OSError.
    """
    try:
        _exchange(subsystem << 8 | message, 0, _NFGEN.pack(0, 0, 0), (), _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return False
        raise
    return True


def _way(family: int, address: bytes) -> int | None:
    """Index of the device through which a packet to ``address`` leaves."""
    body = _ROUTE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
    try:
        answer = _request(_RTM_GETROUTE, body, (_RTA_DST, address))
    except OSError as error:
        if error.errno in _NO_WAY:
            return None
        raise
    device = dict(_attributes(answer[_ROUTE.size :])).get(_RTA_OIF)
    if _ROUTE.unpack_from(answer)[7] != _RTN_UNICAST or device is None:
        return None
    return int.from_bytes(device, sys.byteorder)


def _link(answer: bytes) -> Link:
    _family, hardware, index, flags, _change = _IFINFO.unpack_from(answer)
    found = dict(_attributes(answer[_IFINFO.size :]))
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b"")))
    return Link(
        index,
        _text(found[_IFLA_IFNAME]),
        _text(info.get(_IFLA_INFO_KIND, b"")),
        _text(found.get(_IFLA_IFALIAS, b"")),
        flags,
        hardware,
        int.from_bytes(found.get(_IFLA_NUM_TX_QUEUES, b""), sys.byteorder) or 1,
    )


def _text(raw: bytes) -> str:
    # A name need not be UTF-8; whatever it is, people can be told of it.
    return raw.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each attribute."""
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            raise OSError(errno.EBADMSG, "a netlink attribute without a length")
        yield kind & _TYPE_MASK, data[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3


def _request(kind: int, body: bytes, *attributes: tuple[int, bytes]) -> bytes:
    """The answer to a request for one object; OSError with the kernel's number if it refuses."""
    answers, _whole = _exchange(kind, 0, body, attributes)
    return answers[0]


def _dump(kind: int, body: bytes) -> list[bytes]:
    """All objects of a kind, from one moment; OSError if they change all the time."""
    for _try in range(_DUMP_TRIES):
        answers, whole = _exchange(kind, _NLM_F_DUMP, body, ())
        if whole:
            return answers
    raise OSError(errno.EINTR, "the kernel's list changes faster than it can be read")


def _exchange(
    kind: int,
    flags: int,
    body: bytes,
    attributes: tuple[tuple[int, bytes], ...],
    protocol: int = 0,
) -> tuple[list[bytes], bool]:
    """(payloads of the answers, whether nothing changed meanwhile)."""
    for number, value in attributes:
        head = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number)
        body += head + value + b"\0" * (-len(value) & 3)
    message = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body
    answers: list[bytes] = []
    whole = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as channel:
        channel.bind((0, 0))
        channel.send(message)
        while True:
            data = channel.recv(1 << 17)
            while data:
                length, answer, answer_flags, _number, _port = _HEADER.unpack_from(data)
                payload, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                whole = whole and not answer_flags & _NLM_F_DUMP_INTR
                if answer == _NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    raise OSError(code, os.strerror(code))
                if answer == _NLMSG_DONE:
                    return answers, whole
                answers.append(payload)
            if not flags:
                return answers, whole
