"""Our own addresses: RTM_GETADDR by hand, because the follower does without pyroute2."""

from __future__ import annotations

import socket
import struct

from .netlink import Netlink, attrs

_GETADDR = 22
_IFADDRMSG = struct.Struct("=BBBBi")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def local_addresses(netlink: Netlink) -> list[bytes]:
    """Packed addresses of this host, in the kernel's order.  Raises KernelRefused."""
    payload = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return list(dict.fromkeys(netlink.dump(_GETADDR, payload, "reading our addresses", _address)))


def _address(answer: bytes) -> bytes | None:
    address = local = b""
    for kind, start, end in attrs(answer, _IFADDRMSG.size):
        if kind == _IFA_ADDRESS:
            address = answer[start:end]
        elif kind == _IFA_LOCAL:
            local = answer[start:end]
    # On point-to-point links IFA_ADDRESS is the peer's.
    return local or address or None
