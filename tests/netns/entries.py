"""Conntrack entries without packets: they begin as a SYN does or as one picked up, and time out."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Encoder,
    Netlink,
    attr,
    nest,
)

SYN_SENT, ESTABLISHED = 1, 3
_NEW = 1 << 8
_TIMEOUT_S = 3_600
_CONFIRMED, _SEEN_REPLY_ASSURED = 8, 6


def _tuple(kind: int, flow: Flow, back: bool) -> bytes:
    src, sport, dst, dport = flow[1:]
    if back:
        src, sport, dst, dport = dst, dport, src, sport
    first = 1 if len(src) == 4 else 3
    ports = attr(2, struct.pack(">H", sport)) + attr(3, struct.pack(">H", dport))
    return nest(
        kind,
        nest(1, attr(first, src), attr(first + 1, dst)),
        nest(2, attr(1, bytes((flow.proto,))), ports),
    )


def _message(flow: Flow, flags: int, more: bytes) -> Encoder:
    family = socket.AF_INET if len(flow.src) == 4 else socket.AF_INET6
    body = struct.pack("=BBH", family, 0, 0) + _tuple(1, flow, False) + more
    return lambda seq: HEADER.pack(16 + len(body), _NEW, NLM_F_REQUEST | flags, seq, 0) + body


def _send(messages: list[Encoder], passed: tuple[int, ...] = ()) -> None:
    netlink = Netlink(NETLINK_NETFILTER)
    errors, _ = netlink.batch(messages)
    netlink.close()
    for code in errors.values():
        if code not in passed:
            raise OSError(code, "changing conntrack entries")


def begin(flows: Iterable[Flow], tcp_state: int = SYN_SENT, timeout_s: int = _TIMEOUT_S) -> None:
    """The flows begin; with ``ESTABLISHED`` conntrack has picked them up in the middle."""
    messages = []
    for flow in flows:
        status = _CONFIRMED | (_SEEN_REPLY_ASSURED if tcp_state == ESTABLISHED else 0)
        more = _tuple(2, flow, True) + attr(3, struct.pack(">I", status))
        more += attr(7, struct.pack(">I", timeout_s))
        if flow.proto == socket.IPPROTO_TCP:
            more += nest(4, nest(1, attr(1, bytes((tcp_state,)))))
        messages.append(_message(flow, NLM_F_CREATE, more))
    _send(messages)


def end(flows: Iterable[Flow]) -> None:
    """The flows time out: nobody has asked for it, and the kernel says so."""
    flows = list(flows)
    gone = attr(7, struct.pack(">I", 0))
    _send([_message(flow, 0, gone) for flow in flows], (errno.ENOENT,))
    conntrack = Conntrack()
    # Whoever looks next finds them expired.
    conntrack.get_marks([prepare(flow) for flow in flows])
    conntrack.close()
