"""The name of a flow."""

from __future__ import annotations

import socket
from typing import NamedTuple


class Flow(NamedTuple):
    """The original tuple of a flow; addresses packed (4 or 16 bytes), ports as numbers."""

    proto: int
    src: bytes
    sport: int
    dst: bytes
    dport: int

    def __str__(self) -> str:
        name = {6: "tcp", 17: "udp"}.get(self.proto, str(self.proto))
        return f"{name} {end_text(self.src, self.sport)} > {end_text(self.dst, self.dport)}"


def end_text(address: bytes, port: int) -> str:
    """One end of a flow (a packed address and a port), for people."""
    if len(address) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, address)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{port}"
