"""Ends TCP connections of this host, as ``ss -K`` does: SOCK_DESTROY of sock_diag(7).

Source of the numbers: include/uapi/linux/{sock_diag,inet_diag}.h.  Needs CAP_NET_ADMIN and a kernel
with CONFIG_INET_DIAG_DESTROY (Debian's and Ubuntu's have it); both ends see a reset.

The kernel's table would keep the entry of such a connection for ten seconds, and a SYN after a
reset of our side begins no new one (nf_conntrack_proto_tcp.c): whoever has the port next, another
customer behind a carrier's NAT, would be refused by the mark of the last.  So the entry goes, too.

A socket is looked up first and destroyed by its cookie: for a tuple that is not there and no
cookie, the kernel finds whoever *listens* on the port, and destroys that.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from ...core.flow import Flow
from ...errors import KernelRefused
from .conntrack import Conntrack
from .netlink import HEADER, NLM_F_ACK, NLM_F_REQUEST, Encoder, Netlink

_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
# struct inet_diag_req_v2: family, protocol, extensions, padding, states; then the socket's id:
# ports and addresses of the wire's byte order, interface, cookie.
_REQUEST, _PORTS, _COOKIE = struct.Struct("=BBBxI"), struct.Struct(">HH"), struct.Struct("=I8s")
_NO_COOKIE = b"\xff" * 8
# struct inet_diag_msg: family, state, timer, retransmits, then the same id.
_STATE_AT, _COOKIE_AT = 1, 4 + 4 + 32 + 4
_LISTEN = 10
_ALL_STATES = 0xFFFFFFFF


def encode(seq: int, kind: int, flags: int, flow: Flow, cookie: bytes) -> bytes:
    """Request about our end's socket of a flow that a client began."""
    family = socket.AF_INET if len(flow.src) == 4 else socket.AF_INET6
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES)
    body += _PORTS.pack(flow.dport, flow.sport) + flow.dst.ljust(16, b"\0")
    body += flow.src.ljust(16, b"\0") + _COOKIE.pack(0, cookie)
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, seq, 0) + body


def cookie_of(payload: bytes) -> bytes | None:
    """The cookie of a socket that was found; None of one that listens."""
    if payload[_STATE_AT] == _LISTEN:
        return None
    return payload[_COOKIE_AT : _COOKIE_AT + 8]


def end_connections(flows: Iterable[Flow]) -> list[Flow]:
    """Reset the TCP connections among ``flows`` whose sockets are in this network namespace.

    Returns them, whose entries are gone from the kernel's table; those that end by themselves
    meanwhile are not among them.  Raises KernelRefused.
    """
    wanted = [flow for flow in flows if flow.proto == socket.IPPROTO_TCP]
    if not wanted:
        return []
    netlink = Netlink(_SOCK_DIAG)
    try:
        look_ups: list[Encoder] = [
            lambda seq, f=flow: encode(seq, _BY_FAMILY, 0, f, _NO_COOKIE)  # type: ignore[misc]
            for flow in wanted
        ]
        _errors, replies = netlink.batch(look_ups)  # ENOENT: its socket is elsewhere, or gone
        found = [
            (wanted[reply.number], cookie)
            for reply in replies
            if (cookie := cookie_of(reply.payload)) is not None
        ]
        destroys: list[Encoder] = [
            lambda seq, f=flow, c=cookie: encode(seq, _DESTROY, NLM_F_ACK, f, c)  # type: ignore[misc]
            for flow, cookie in found
        ]
        errors, _replies = netlink.batch(destroys)
    finally:
        netlink.close()
    for code in errors.values():
        if code != errno.ENOENT:
            raise KernelRefused(code, "ending a connection by its socket")
    ended = [flow for index, (flow, _cookie) in enumerate(found) if index not in errors]
    if ended:
        conntrack = Conntrack()
        try:
            conntrack.delete(ended)
        finally:
            conntrack.close()
    return ended
