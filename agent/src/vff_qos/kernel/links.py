"""Interfaces: rtnetlink packed by hand.

Source of the numbers: include/uapi/linux/{rtnetlink,if_link}.h.  Packed rather than through
pyroute2, because importing that costs 0.3 s here and 5 s on a slow node, at every healing.
"""

from __future__ import annotations

import errno
import socket
import struct

from ..core.plan.layout import Link
from ..errors import KernelRefused
from .packed.netlink import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Netlink,
    attr,
    attrs,
    nest,
)

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_U32 = struct.Struct("=I")
_IFNAME, _MTU, _TXQLEN, _LINKINFO, _ALIAS, _AF_SPEC, _EXT_MASK = 3, 4, 13, 18, 20, 26, 29
_NUM_TX_QUEUES, _PROP_LIST, _ALT_IFNAME = 31, 52, 53
_INFO_KIND = 1
_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1
_SKIP_STATS = 8
_IFF_UP = 1


def send(netlink: Netlink, kind: int, flags: int, payload: bytes, what: str) -> None:
    """One request; raises KernelRefused (``what`` goes into the message) if it fails."""
    length = HEADER.size + len(payload)
    errors, _ = netlink.batch(
        [lambda seq: HEADER.pack(length, kind, NLM_F_REQUEST | flags, seq, 0) + payload]
    )
    if errors:
        raise KernelRefused(errors[0], what)


def _text(data: bytes) -> str:
    # As rtnetlink.py has it: the same device must have the same name in both.
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def links(netlink: Netlink) -> dict[str, Link]:
    """{name: interface} of this network namespace."""
    request = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attr(_EXT_MASK, _U32.pack(_SKIP_STATS))
    found = {}
    for data in netlink.dump(_GETLINK, request, "reading interfaces"):
        _family, _type, index, flags, _change = _IFINFO.unpack_from(data)
        name = kind = alias = ""
        txqlen = mtu = 0
        altnames = []
        for number, start, end in attrs(data, _IFINFO.size):
            if number == _IFNAME:
                name = _text(data[start:end])
            elif number == _TXQLEN:
                (txqlen,) = _U32.unpack_from(data, start)
            elif number == _MTU:
                (mtu,) = _U32.unpack_from(data, start)
            elif number == _ALIAS:
                alias = _text(data[start:end])
            elif number == _LINKINFO:
                for inner, a, b in attrs(data, start, end):
                    if inner == _INFO_KIND:
                        kind = _text(data[a:b])
            elif number == _PROP_LIST:
                inside = attrs(data, start, end)
                altnames = [_text(data[a:b]) for n, a, b in inside if n == _ALT_IFNAME]
        up = bool(flags & _IFF_UP)
        found[name] = Link(index, kind, alias, up, txqlen, tuple(altnames), mtu)
    return found


def add_ifb(netlink: Netlink, name: str, alias: str, txqlen: int) -> None:
    """Make an IFB device, or finish one that is there, and set it up."""
    what = f"adding ifb device {name}"
    before = links(netlink)
    if name not in before:
        body = attr(_IFNAME, name.encode() + b"\0") + attr(_NUM_TX_QUEUES, _U32.pack(1))
        body += nest(_LINKINFO, attr(_INFO_KIND, b"ifb\0"))
        send(netlink, _NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFO.pack(0, 0, 0, 0, 0) + body, what)
        # Loading the module makes two devices of its own (numifbs=2), which nobody asked for.
        for other, link in links(netlink).items():
            if other not in before and other != name and link.kind == "ifb" and not link.up:
                delete_link(netlink, other)
    set_ifb(netlink, name, alias, txqlen)


def set_ifb(netlink: Netlink, name: str, alias: str, txqlen: int) -> None:
    """Alias, queue length and up."""
    index = links(netlink)[name].ifindex
    head = _IFINFO.pack(0, 0, index, 0, 0)
    body = attr(_ALIAS, alias.encode()) + attr(_TXQLEN, _U32.pack(txqlen))
    # Else it would get a link-local address when it comes up, and send router solicitations.
    mode = attr(_INET6_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    quiet = nest(_AF_SPEC, nest(socket.AF_INET6, mode))
    what = f"setting up ifb device {name}"
    try:
        send(netlink, _NEWLINK, 0, head + body + quiet, what)
    except KernelRefused as error:
        if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
        send(netlink, _NEWLINK, 0, head + body, what)  # a kernel without IPv6
    send(netlink, _NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP), what)


def delete_link(netlink: Netlink, name: str) -> None:
    """Delete an interface."""
    head = _IFINFO.pack(0, 0, 0, 0, 0) + attr(_IFNAME, name.encode() + b"\0")
    send(netlink, _DELLINK, 0, head, f"removing interface {name}")
