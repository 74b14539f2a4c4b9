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
        family = socket.AF_INET if len(self.src) == 4 else socket.AF_INET6
        src, dst = socket.inet_ntop(family, self.src), socket.inet_ntop(family, self.dst)
        name = {6: "tcp", 17: "udp"}.get(self.proto, str(self.proto))
        if family == socket.AF_INET6:
            src, dst = f"[{src}]", f"[{dst}]"
        return f"{name} {src}:{self.sport} > {dst}:{self.dport}"
