"""Whether the node's TCP has room for what it buffers.

A limit makes the proxy read slowly from the Internet, and the kernel keeps what waits: up to
tcp_rmem[2] bytes for each connection.  Beyond tcp_mem[1] pages of all connections together it drops
what arrives, whosever it is (tcp(7), net/ipv4/tcp_input.c).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import KernelRefused

_PATH = "/proc/net/protocols"


class TcpMemory(NamedTuple):
    """What TCP buffers on this host, in all network namespaces."""

    used_bytes: int
    is_short: bool  # the kernel's own word: memory pressure

    def __str__(self) -> str:
        return (
            f"TCP is short of memory ({self.used_bytes / 1e6:.0f} MB wait in buffers): connections "
            "of all users may stall; lower the third number of net.ipv4.tcp_rmem"
        )


def parse_protocols(text: str, page_bytes: int) -> TcpMemory:
    """From /proc/net/protocols (net/core/sock.c).  Raises ValueError without a line of TCP."""
    for line in text.splitlines():
        # protocol, size, sockets, memory in pages, pressure
        fields = line.split()
        if fields[:1] == ["TCP"]:
            return TcpMemory(int(fields[3]) * page_bytes, fields[4] == "yes")
    raise ValueError(f"{_PATH} does not know TCP")


def read_tcp_memory() -> TcpMemory:
    """As it is now.  Raises KernelRefused."""
    try:
        with open(_PATH, encoding="ascii") as file:
            return parse_protocols(file.read(), os.sysconf("SC_PAGE_SIZE"))
    except OSError as error:
        raise KernelRefused(error.errno or 0, f"reading {_PATH}") from error
