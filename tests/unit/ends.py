"""Addresses and service ports of a node and a client, for tests of flows."""

from __future__ import annotations

import socket

from vff_qos.core.flows.ends import ServiceEnds

US4, US6 = socket.inet_aton("203.0.113.1"), socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")


THEM4, THEM6 = socket.inet_aton("198.51.100.7"), socket.inet_pton(socket.AF_INET6, "2001:db8::7")


ENDS = ServiceEnds(((443, 443), (20000, 20100)), [US4, US6])


TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def port(number: int) -> bytes:
    """As it stands in a packet."""
    return number.to_bytes(2, "big")
