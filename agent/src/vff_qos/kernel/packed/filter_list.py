"""Which filters there are: rtnetlink packed by hand, for who must not load pyroute2.

Source of the numbers: include/uapi/linux/{rtnetlink,pkt_cls}.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ...core.htb import classid
from ...core.plan.handles import INGRESS, ROOT
from .netlink import Netlink, attrs

_GETTFILTER = 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_U32 = struct.Struct("=I")
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
#: Parents of filters at the hooks of clsact.
_HOOKS = {INGRESS: 0xFFFFFFF2, "egress": 0xFFFFFFF3}


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
        for found in netlink.dump(_GETTFILTER, request, what, decode_filter, ends=errno.EMSGSIZE):
            # Each preference is listed once with handle 0 as a heading, then its filters.
            # cls_fw without handles is only the heading.
            if found.handle or (found.kind == "fw" and hook == ROOT):
                yield found
    finally:
        netlink.close()
