"""Only events of our own ends pass the socket filter; it is replaced without a gap."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from vff_qos.core.flows.ends import FlowSeen, ServiceEnds
from vff_qos.kernel.packed.flow_events import FlowEvents

from .harness import run
from .peer import (
    BOTH,
    THEM,
    UDP,
    US,
    Peer,
    add_address,
    deliver,
    drain,
    end_of,
    ends_of,
    packed,
)


def heard(events: FlowEvents) -> int:
    """How many messages the kernel has let through."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while events._sock.recv(8192):
            count += 1
    return count


RANGES = {
    "one port": ((443, 443), (20500, 20503)),
    "a hundred ranges": ((443, 443), *((20000 + 10 * n, 20003 + 10 * n) for n in range(100))),
    "too many ranges": ((443, 443), (20500, 20503), *((p, p) for p in range(30000, 60000, 2))),
    "all ports": (),
}


@pytest.mark.parametrize("ranges", list(RANGES))
@BOTH
def test_what_is_let_through(peer: Peer, ranges: str, family: socket.AddressFamily) -> None:
    stranger = {socket.AF_INET: "10.96.0.1", socket.AF_INET6: "fd96::1"}[family]
    add_address(stranger)
    with peer.entered():
        run("ip", "route", "add", stranger, "via", US[family])
    events = FlowEvents(ends_of(RANGES[ranges]))
    assert events.filtered is (ranges != "too many ranges")
    us, them = US[family], THEM[family]

    every = ranges == "all ports"
    # from whom, to whom, whether it is worth an event
    cases = [
        ((them, 5001), (us, 443), True),
        ((them, 5002), (us, 20500), True),
        ((them, 5003), (us, 20503), True),
        ((them, 5004), (us, 20504), every),
        ((them, 5005), (us, 444), every),
        # To an address of this host that is none of ours (a container's, say).
        ((them, 5006), (stranger, 443), False),
        # The proxy's own connections: a remote port is no service of ours.
        ((us, 5007), (them, 443), every),
        ((stranger, 5008), (them, 443), False),
        ((stranger, 443), (them, 5009), False),
        # Our side speaks first.
        ((us, 443), (them, 5010), True),
        ((us, 20503), (them, 5011), True),
        ((us, 20504), (them, 5012), every),
    ]
    for source, to, wanted in cases:
        if to[0] == them:
            with socket.socket(family, socket.SOCK_DGRAM) as ours:
                ours.bind(source)
                ours.sendto(b"x", to)
            client, end = to, source
        else:
            with peer.udp(family, source[1]) as theirs:
                deliver(theirs, to[1], to[0])
            client, end = source, to
        expected = FlowSeen(
            packed(family, *client), bytes((UDP,)) + packed(family, *end), 0, 0, 0, False
        )
        assert drain(events) == ([(True, expected)] if wanted else []), (source, to)
    run("conntrack", "-F")
    count = heard(events)
    if events.filtered:
        assert count == sum(wanted for *_, wanted in cases)
    else:
        assert count >= len(cases)
    events.close()


def test_a_filter_is_replaced_while_listening(peer: Peer, events: FlowEvents) -> None:
    clients = [peer.udp(socket.AF_INET) for _ in range(2)]

    def send() -> list[bytes]:
        for client, port in zip(clients, (443, 30000), strict=True):
            deliver(client, port)
        found = [flow.client for _, flow in drain(events)]
        run("conntrack", "-F")
        drain(events)
        return found

    ends = [end_of(client) for client in clients]
    assert send() == ends[:1]
    events.set_ends(ends_of(((30000, 30000),)))
    assert events.filtered
    assert send() == ends[1:]
    events.set_ends(ServiceEnds(((30000, 30000),), [socket.inet_aton("10.96.0.9")]))
    assert send() == []
    assert heard(events) == 0
    events.set_ends(ends_of(tuple((port, port) for port in range(2, 60000, 2))))
    assert not events.filtered
    assert send() == ends[1:]
    events.set_ends(ends_of(()))
    assert events.filtered
    assert send() == ends


def test_a_filter_for_which_there_is_no_memory_is_left_out(peer: Peer) -> None:
    limit = Path("/proc/sys/net/core/optmem_max")
    if not limit.exists():
        pytest.skip("net.core.optmem_max is the whole machine's before Linux 6.9")

    def ranges(first: int, count: int) -> ServiceEnds:
        return ends_of(tuple((first + 10 * n, first + 10 * n) for n in range(count)))

    limit.write_text("20480")
    events = FlowEvents(ranges(443, 500))
    assert events.filtered
    first, second = peer.udp(socket.AF_INET), peer.udp(socket.AF_INET)

    def send() -> list[bytes]:
        deliver(first, 443)
        deliver(second, 444)
        run("conntrack", "-F")
        return [flow.client for new, flow in drain(events) if new]

    assert send() == [end_of(first)]
    # There is room for one of these, not for the old and the new one.
    events.set_ends(ranges(444, 500))
    assert events.filtered
    assert send() == [end_of(second)]
    events.set_ends(ranges(443, 1000))
    assert not events.filtered
    assert send() == [end_of(first)]
    events.close()
    events = FlowEvents(ranges(444, 1000))
    assert not events.filtered
    assert send() == [end_of(second)]
    events.close()
