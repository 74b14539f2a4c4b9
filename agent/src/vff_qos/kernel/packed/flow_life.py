"""Whether flows are still in use, and how long they have been silent: what conntrack says of it.

Source of the numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket

from ...core.flows.quietest import Life, Timeouts
from ..sysctls import read_sysctl
from .netlink import attrs

_STATUS, _PROTOINFO, _TIMEOUT = 3, 4, 7
_TCP_STATE = 1  # in the only nest of CTA_PROTOINFO
_ASSURED = 1 << 2  # enum ip_conntrack_status: UDP that has lasted
_SYSCTLS = {
    "established": "tcp_timeout_established",
    "unacknowledged": "tcp_timeout_unacknowledged",
    "retransmitted": "tcp_timeout_max_retrans",
    "fin_wait": "tcp_timeout_fin_wait",
    "close_wait": "tcp_timeout_close_wait",
    "udp": "udp_timeout",
    "udp_stream": "udp_timeout_stream",
}


def decode_life(payload: bytes) -> Life:
    """What tells whether a flow is still in use, from the payload of its entry's message."""
    left_s = state = status = 0
    for kind, start, end in attrs(payload, 4):
        if kind == _TIMEOUT:
            left_s = int.from_bytes(payload[start:end], "big")
        elif kind == _STATUS:
            status = int.from_bytes(payload[start:end], "big")
        elif kind == _PROTOINFO:
            for _tcp, at, stop in attrs(payload, start, end):
                state = _byte(payload, at, stop, _TCP_STATE)
    return Life(left_s, state, bool(status & _ASSURED))


def decode_source_and_life(payload: bytes) -> tuple[bytes, Life]:
    """As `decode_life`, with the source address, which stands first (`decode_mark_and_source`)."""
    end = 20 if payload[0] == socket.AF_INET else 32
    return payload[16:end], decode_life(payload)


def _byte(payload: bytes, start: int, end: int, wanted: int) -> int:
    return next(
        (payload[at] for kind, at, _stop in attrs(payload, start, end) if kind == wanted), 0
    )


def read_timeouts() -> Timeouts:
    """Those of this namespace; the kernel's defaults where it has none.  Raises KernelRefused."""
    found: dict[str, int] = {}
    for field, sysctl in _SYSCTLS.items():
        value = read_sysctl(f"net.netfilter.nf_conntrack_{sysctl}").value
        if value is not None:
            found[field] = int(value)
    return Timeouts()._replace(**found)
