"""Which interfaces there are: rtnetlink packed by hand.

pyroute2 0.9.7 does not tell that a list was interrupted (NLM_F_DUMP_INTR): of 77 lists that were
read while links came and went, 27 were.

Source of the numbers: include/uapi/linux/{rtnetlink,if_link}.h.
"""

from __future__ import annotations

import socket
import struct
import sys

from ...core.plan.handles import Interface
from .netlink import HEADER, NLM_F_REQUEST, Netlink, attr, attrs

_GETLINK = 18
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_U32 = struct.Struct("=I")
_IFNAME, _MTU, _TXQLEN, _LINKINFO, _ALIAS, _EXT_MASK = 3, 4, 13, 18, 20, 29
_NUM_TX_QUEUES, _PROP_LIST, _ALT_IFNAME = 31, 52, 53
_INFO_KIND = 1
_SKIP_STATS = 8
_IFF_UP = 1


def read_links(netlink: Netlink) -> dict[str, Interface]:
    """{name: interface} of this network namespace."""
    request = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attr(_EXT_MASK, _U32.pack(_SKIP_STATS))
    return dict(netlink.dump(_GETLINK, request, "reading interfaces", _decode))


def _decode(data: bytes) -> tuple[str, Interface]:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(data)
    fields = {number: data[start:end] for number, start, end in attrs(data, _IFINFO.size)}
    info = fields.get(_LINKINFO, b"")
    names = fields.get(_PROP_LIST, b"")
    kinds = [_text(info[start:end]) for number, start, end in attrs(info) if number == _INFO_KIND]
    return _text(fields[_IFNAME]), Interface(
        ifindex=index,
        kind=kinds[0] if kinds else "",
        alias=_text(fields.get(_ALIAS, b"")),
        up=bool(flags & _IFF_UP),
        txqlen=int.from_bytes(fields.get(_TXQLEN, b""), sys.byteorder),
        altnames=tuple(_text(names[a:b]) for n, a, b in attrs(names) if n == _ALT_IFNAME),
        mtu=int.from_bytes(fields.get(_MTU, b""), sys.byteorder),
        queues=int.from_bytes(fields.get(_NUM_TX_QUEUES, b""), sys.byteorder) or 1,
    )


def _text(data: bytes) -> str:
    # As rtnetlink.py has it: the same device must have the same name in both.
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def is_link_up(netlink: Netlink, ifindex: int) -> bool:
    """Whether there is such an interface and it is up."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    _errors, replies = netlink.batch(
        [lambda seq: HEADER.pack(16 + len(body), _GETLINK, NLM_F_REQUEST, seq, 0) + body]
    )
    return any(_IFINFO.unpack_from(reply.payload)[3] & _IFF_UP for reply in replies)
