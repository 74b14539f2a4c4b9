"""What the kernel would send of flows, for tests of the mirror."""

from __future__ import annotations

import socket
from typing import Any

from vff_qos.core.claims.trust import PLAIN
from vff_qos.core.flows.ends import FlowSeen
from vff_qos.core.flows.mirror import Heard, Mirror
from vff_qos.core.flows.record import owned

TCP, UDP = 6, 17
MAJOR = 0x5100
TAG = MAJOR << 16
ALICE, BOB = 7, 8
US, US_TOO = socket.inet_aton("203.0.113.1"), socket.inet_aton("203.0.113.2")
US6 = socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")
SYN_SENT, ESTABLISHED = 1, 3


def client(port_number: int, address: str = "198.51.100.7") -> bytes:
    """A client's end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address) + port_number.to_bytes(2, "big")


def ours(proto: int = TCP, port_number: int = 443, address: bytes = US) -> bytes:
    """Our end."""
    return bytes((proto,)) + address + port_number.to_bytes(2, "big")


def seen(
    end: bytes,
    our_end: bytes = ours(),
    mark: int = 0,
    state: int | None = None,
    started_ns: int = 0,
    by_request: bool = False,
) -> FlowSeen:
    if state is None:
        state = SYN_SENT if our_end[0] == TCP else 0
    return FlowSeen(end, our_end, mark, state, started_ns, by_request)


class Kernel:
    """What the kernel would send, and the clock."""

    def __init__(self, **options: Any) -> None:
        self.mirror = Mirror(MAJOR, 0.0, **options)
        self.now_s = 0.0

    def new(self, end: bytes, our_end: bytes = ours(), mark: int = 0,
            state: int | None = None, after_dump: bool = False) -> Heard:  # fmt: skip
        event = True, seen(end, our_end, mark, state)
        return self.mirror.apply([event], self.now_s, after_dump)

    def destroy(self, end: bytes, our_end: bytes = ours(), by_request: bool = False) -> Heard:
        return self.mirror.apply([(False, seen(end, our_end, by_request=by_request))], self.now_s)

    def dump(self, *table: FlowSeen, lossy: bool = True) -> Heard:
        return self.mirror.resync(table, self.now_s, lambda _minor: False, lossy)

    def give(self, end: bytes, minor: int, word_rank: int = PLAIN, flags: int = 0,
             our_end: bytes | None = None) -> None:  # fmt: skip
        """A word has given the flow away."""
        record = self.only(end, our_end)
        self.mirror.put(end, owned(record, minor, word_rank, flags))

    def only(self, end: bytes, our_end: bytes | None = None) -> int:
        """The record of a client end's only flow (to ``our_end``)."""
        records = [
            record
            for record in self.mirror.find(end)
            if our_end is None or self.mirror.ours(record) == our_end
        ]
        (record,) = records
        return record
