"""What a datagram of a marked connection costs where QUIC connections are followed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

from vff_qos.core.flow import Flow
from vff_qos.core.plan.desired import our_table
from vff_qos.core.settings import Settings
from vff_qos.kernel.nft import replace_table
from vff_qos.kernel.packed.conntrack import Conntrack, prepare

from .rows import Report
from .world import run

_PORT, _MARK, _PACKETS = 443, 0x5100002A, 100_000
_ID = b"\x4f" + b"1234"


def measure(report: Report, runs: int) -> None:
    """Datagrams through lo, in the kernel's time of whoever sends: with and without the chain, of
    one ID, and with other bytes each (Salamander)."""
    report.progress("datagrams of connections that are followed")
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for follows in (False, True):
            replace_table(our_table(Settings(follow_quic=follows)))
            name = "on" if follows else "off"
            found.setdefault(f"{name}.known", []).append(_cost_us(_same()))
            found.setdefault(f"{name}.hidden", []).append(_cost_us(_hidden()))
    for name, values in sorted(found.items()):
        report.add(f"quic.us_per_datagram.{name}", values, "us")
    run("nft", "delete", "table", "inet", "vff_qos")


def _same() -> Iterator[bytes]:
    packet = _ID + bytes(1_200)
    return iter([packet] * _PACKETS)


def _hidden() -> Iterator[bytes]:
    noise, rest = os.urandom(4 * _PACKETS), bytes(1_200)
    return iter([b"\x4f" + noise[k : k + 4] + rest for k in range(0, 4 * _PACKETS, 4)])


def _cost_us(packets: Iterator[bytes]) -> float:
    """The kernel's time for each datagram of a marked flow."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as server,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", _PORT))
        client.connect(("127.0.0.1", _PORT))
        client.send(b"\xc0")
        ours = socket.inet_aton("127.0.0.1")
        flow = Flow(socket.IPPROTO_UDP, ours, client.getsockname()[1], ours, _PORT)
        conntrack = Conntrack()
        if errors := conntrack.set_marks([prepare(flow, _MARK)]):
            raise SystemExit(f"bench: the flow got no mark: {os.strerror(errors[0])}")
        conntrack.close()
        send = client.send
        began = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
        for packet in packets:
            send(packet)
        return (time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) - began) / _PACKETS * 1e6
