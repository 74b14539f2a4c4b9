"""Conntrack tells which flows begin and end: real flows between two namespaces."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from pathlib import Path

import pytest

from vff_qos.core.flow import Flow
from vff_qos.core.flows.ends import FlowSeen, ServiceEnds
from vff_qos.errors import KernelRefused
from vff_qos.kernel.packed import flow_events
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.flow_events import FlowEvents, events_mode

from .harness import run
from .peer import (
    BOTH,
    TCP,
    THEM,
    UDP,
    US,
    Peer,
    add_address,
    deliver,
    drain,
    end_of,
    ends_of,
    one,
    our_end,
    packed,
    receive,
    sysctl,
)


def expire(events: FlowEvents) -> list[tuple[bool, FlowSeen]]:
    """Events once the flow's timeout of a second is over: a dump takes expired entries out."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        list(events.dump())
        if found := drain(events):
            return found
        time.sleep(0.1)
    raise AssertionError("no flow has ended")


@BOTH
def test_udp(peer: Peer, events: FlowEvents, family: socket.AddressFamily) -> None:
    sysctl("nf_conntrack_udp_timeout", 1)
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((US[family], 20100))
    client = peer.udp(family)
    client.sendto(b"x", (US[family], 20100))
    receive(server)
    flow = FlowSeen(end_of(client), our_end(UDP, family, 20100), 0, 0, 0, False)
    assert drain(events) == [(True, flow)]
    # The entry lives: no word of a second packet, nor of a mark.
    client.sendto(b"x", (US[family], 20100))
    receive(server)
    conntrack = Conntrack()
    us, them = (socket.inet_pton(family, a[family]) for a in (US, THEM))
    tuple_ = Flow(UDP, them, client.getsockname()[1], us, 20100)
    assert conntrack.set_marks([prepare(tuple_, 0x5100002A)]) == {}
    conntrack.close()
    assert drain(events) == []
    marked = flow._replace(mark=0x5100002A)
    assert list(events.dump()) == [marked]
    assert expire(events) == [(False, marked)]
    assert list(events.dump()) == []


@BOTH
def test_tcp(peer: Peer, events: FlowEvents, family: socket.AddressFamily) -> None:
    sysctl("nf_conntrack_tcp_timeout_close", 1)
    server = socket.create_server((US[family], 443), family=family)
    client = peer.tcp(family, 0, (US[family], 443))
    accepted, _ = server.accept()
    flow = FlowSeen(end_of(client), our_end(TCP, family), 0, SYN_SENT, 0, False)
    assert drain(events) == [(True, flow)]
    assert list(events.dump()) == [flow._replace(tcp_state=ESTABLISHED)]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    accepted.close()
    new, ended = expire(events)[0]
    assert not new
    assert ended[:2] == flow[:2]
    assert not ended.by_request


def test_a_listener_for_both_families_has_ipv4_flows(peer: Peer, events: FlowEvents) -> None:
    server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
    client = peer.tcp(socket.AF_INET, 0, (US[socket.AF_INET], 443))
    _, (address, *_) = server.accept()
    assert address.startswith("::ffff:")
    seen = one(events, True)
    assert seen[:2] == (end_of(client), our_end(TCP, socket.AF_INET))


@BOTH
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_behind_dnat_the_public_end_is_named(
    peer: Peer, events: FlowEvents, family: socket.AddressFamily, proto: int
) -> None:
    inside = {socket.AF_INET: "10.97.0.1", socket.AF_INET6: "fd97::1"}[family]
    ip, text = {socket.AF_INET: ("ip", inside), socket.AF_INET6: ("ip6", f"[{inside}]")}[family]
    add_address(inside)
    rules = f"""table {ip} t {{
        chain c {{ type nat hook prerouting priority -100;
            {ip} daddr {US[family]} meta l4proto {{ tcp, udp }} th dport 20001 dnat to {text}:8443
        }}\n}}\n"""
    run("nft", "-f", "-", stdin=rules)
    kind = socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM
    server = socket.socket(family, kind)
    server.bind((inside, 8443))
    if proto == TCP:
        server.listen()
        client = peer.tcp(family, 0, (US[family], 20001))
        server.accept()
    else:
        client = peer.udp(family)
        client.sendto(b"x", (US[family], 20001))
        receive(server)
    seen = one(events, True)
    assert seen[:2] == (end_of(client), our_end(proto, family, 20001))
    assert [flow[:2] for flow in events.dump()] == [seen[:2]]
    run("conntrack", "-D", "-f", {"ip": "ipv4", "ip6": "ipv6"}[ip])
    assert one(events, False)[:2] == seen[:2]


@BOTH
def test_a_tcp_flow_is_picked_up_whoever_speaks_first(
    peer: Peer, events: FlowEvents, family: socket.AddressFamily
) -> None:
    server = socket.create_server((US[family], 443), family=family)
    client = peer.tcp(family, 0, (US[family], 443))
    accepted, _ = server.accept()
    fresh = one(events, True)
    assert fresh.tcp_state == SYN_SENT
    for speaker, listener in ((client, accepted), (accepted, client)):
        run("conntrack", "-F")
        ended = one(events, False)
        assert ended == fresh._replace(tcp_state=ESTABLISHED, by_request=True)
        speaker.send(b"x")
        receive(listener)
        # Not SYN_SENT: who looks at it knows that it was not born now.
        assert one(events, True) == fresh._replace(tcp_state=ESTABLISHED)
        assert list(events.dump()) == [fresh._replace(tcp_state=ESTABLISHED)]
    sysctl("nf_conntrack_tcp_loose", 0)
    run("conntrack", "-F")
    assert one(events, False).by_request
    client.send(b"x")
    receive(accepted)
    assert drain(events) == []  # never tracked again


@BOTH
def test_a_udp_flow_is_picked_up_when_our_side_speaks(
    peer: Peer, events: FlowEvents, family: socket.AddressFamily
) -> None:
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((US[family], 443))
    client = peer.udp(family)
    client.sendto(b"x", (US[family], 443))
    receive(server)
    first = one(events, True)
    run("conntrack", "-F")
    assert one(events, False) == first._replace(by_request=True)
    server.sendto(b"x", client.getsockname())
    receive(client)
    assert one(events, True) == first


@pytest.mark.parametrize("how", ["-D", "-F", "timeout", "close"])
def test_who_ended_a_flow(peer: Peer, events: FlowEvents, how: str) -> None:
    for name in "close", "time_wait", "last_ack":
        sysctl(f"nf_conntrack_tcp_timeout_{name}", 1)
    if how == "timeout":
        sysctl("nf_conntrack_tcp_timeout_established", 1)
    server = socket.create_server((US[socket.AF_INET], 443))
    client = peer.tcp(socket.AF_INET, 0, (US[socket.AF_INET], 443))
    accepted, _ = server.accept()
    assert one(events, True).tcp_state == SYN_SENT
    if how == "-D":
        run("conntrack", "-D", "-p", "tcp", "--dport", "443")
    elif how == "-F":
        run("conntrack", "-F")
    elif how == "close":
        client.close()
        accepted.close()
    new, flow = (drain(events) or expire(events))[0]
    assert (new, flow.by_request) == (False, how in ("-D", "-F"))


def test_a_tuple_used_again_in_time_wait_ends_and_begins(peer: Peer, events: FlowEvents) -> None:
    server = socket.create_server((US[socket.AF_INET], 443))
    client = peer.tcp(socket.AF_INET, 6666, (US[socket.AF_INET], 443))
    accepted, _ = server.accept()
    first = one(events, True)
    # Our side closes first and keeps TIME_WAIT; the client's port is free.
    accepted.close()
    client.settimeout(5)
    assert client.recv(1) == b""
    client.close()
    again = peer.tcp(socket.AF_INET, 6666, (US[socket.AF_INET], 443))
    server.accept()
    (ended, old), (begun, new) = drain(events)
    assert (ended, begun) == (False, True)
    assert old[:2] == new[:2] == first[:2]
    assert new.tcp_state == SYN_SENT
    assert not old.by_request
    again.close()


# enum tcp_conntrack
SYN_SENT, ESTABLISHED = 1, 3

_PORTS = itertools.cycle(range(10_000, 30_000))  # no port comes twice while its flow lives


def flood(peer: Peer, count: int) -> list[bytes]:
    """So many UDP flows; their client ends."""
    clients = []
    for _ in range(count):
        client = peer.udp(socket.AF_INET, next(_PORTS))
        deliver(client, 443)
        clients.append(end_of(client))
        client.close()
    return clients


def test_a_look_is_bounded(peer: Peer, events: FlowEvents) -> None:
    clients = flood(peer, 50)
    got, looks = [], 0
    while True:
        drained = events.drain(limit=20)
        assert not drained.lost
        assert len(drained.events) <= 20
        got += [flow.client for _, flow in drained.events]
        looks += 1
        if not drained.more:
            break
    assert got == clients
    assert looks == 3


def test_an_overflow_is_told_once_and_a_dump_makes_it_whole(peer: Peer) -> None:
    events = FlowEvents(ends_of(), receive_buffer_bytes=4096)
    clients = flood(peer, 300)
    drained = events.drain(limit=1)
    assert drained.lost
    assert not drained.more
    got = [flow.client for _, flow in drained.events]
    assert 1 < len(got) < 50
    assert got == clients[: len(got)]
    assert sorted(flow.client for flow in events.dump()) == sorted(clients)
    assert events.drain() == ([], False, False)
    later = flood(peer, 1)
    assert [flow.client for _, flow in drain(events)] == later
    events.close()


def test_a_message_that_cannot_be_read_counts_as_lost(peer: Peer, events: FlowEvents) -> None:
    first = flood(peer, 1)
    raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    raw.bind((0, 0))
    port = events._sock.getsockname()[0]
    body = bytes((socket.AF_INET, 0, 0, 0)) + _tuple_of(first[0]) + struct.pack("=HH", 100, 8)
    message = struct.pack("=IHHII", 16 + len(body), 1 << 8, 0, 0, 0) + body
    raw.sendto(message, (port, 0))
    second = flood(peer, 1)
    drained = events.drain(limit=2)
    assert drained.lost
    assert not drained.more
    assert [flow.client for _, flow in drained.events] == first + second
    raw.close()


def _tuple_of(client: bytes) -> bytes:
    flow = Flow(
        UDP, client[:4], int.from_bytes(client[4:], "big"),
        socket.inet_aton(US[socket.AF_INET]), 443,
    )  # fmt: skip
    return prepare(flow)[20:72]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_modes_of_the_sysctl(peer: Peer, mode: int) -> None:
    sysctl("nf_conntrack_events", mode)
    assert events_mode() == mode
    older = flood(peer, 1)
    events = FlowEvents(ends_of())
    younger = flood(peer, 1)
    assert [flow.client for _, flow in drain(events)] == ([] if mode == 0 else younger)
    # Whatever the mode, a dump finds all.
    assert sorted(flow.client for flow in events.dump()) == sorted(older + younger)
    run("conntrack", "-F")
    ended = [flow.client for new, flow in drain(events) if not new]
    if mode == 0:
        assert ended == []
        rules = "table inet e {\nchain c { type filter hook prerouting priority -10; %s; }\n}\n"
        run("nft", "-f", "-", stdin=rules % "ct event set new,destroy")
        told = flood(peer, 1)
        assert [flow.client for _, flow in drain(events)] == told
        run("conntrack", "-F")
        assert [(new, flow.client) for new, flow in drain(events)] == [(False, told[0])]
    elif mode == 1:
        assert sorted(ended) == sorted(older + younger)
    else:
        # Whether anybody listened is asked of all namespaces (from 6.4 on), so that the older
        # one may be among these.
        assert set(younger) <= set(ended) <= set(older + younger)
    events.close()


def test_no_conntrack_no_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_events, "_EVENTS_SYSCTL", str(tmp_path / "none"))
    assert events_mode() is None


def test_a_listener_elsewhere_that_ends_does_not_silence_ours(
    peer: Peer, events: FlowEvents
) -> None:
    with peer.entered():
        other = FlowEvents(ends_of())
    other.close()
    clients = flood(peer, 1)
    assert [flow.client for _, flow in drain(events)] == clients


def test_with_timestamps_a_dump_says_when_a_flow_began(peer: Peer, events: FlowEvents) -> None:
    sysctl("nf_conntrack_timestamp", 1)
    before = time.time_ns()
    clients = flood(peer, 2)
    after = time.time_ns()
    begun = {flow.client: flow.started_ns for _, flow in drain(events)}
    dumped = {flow.client: flow.started_ns for flow in events.dump()}
    assert set(begun) == set(dumped) == set(clients)
    assert before <= dumped[clients[0]] < dumped[clients[1]] <= after
    # Newer kernels have a word for NEW, too: some microseconds before or after the other.
    assert all(started == 0 or before <= started <= after for started in begun.values())
    run("conntrack", "-F")
    assert {flow.client: flow.started_ns for _, flow in drain(events)} == dumped


def test_other_zones_are_left_out(peer: Peer, events: FlowEvents) -> None:
    rules = """table inet z {
        chain c { type filter hook prerouting priority -300; udp dport 20007 ct zone set 7; }
    }\n"""
    run("nft", "-f", "-", stdin=rules)
    client = peer.udp(socket.AF_INET, 5555)
    deliver(client, 20007)
    assert "zone=7" in run("conntrack", "-L", "-p", "udp")
    assert drain(events) == []
    assert list(events.dump()) == []
    deliver(client, 443)
    assert one(events, True).client == end_of(client)


def test_without_the_right_to_listen_it_says_so(namespace: None) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(KernelRefused, match="listening to conntrack") as caught:
            FlowEvents(ends_of())
    finally:
        os.seteuid(0)
    assert caught.value.code == 1


def test_a_dump_may_be_left_in_the_middle(peer: Peer, events: FlowEvents) -> None:
    clients = flood(peer, 500)
    assert next(iter(events.dump())).client in clients
    assert sorted(flow.client for flow in events.dump()) == sorted(clients)


def test_every_loopback_address_is_ours(namespace: None) -> None:
    events = FlowEvents(ServiceEnds(((443, 443),), [socket.inet_aton("127.0.0.1")]))
    assert events.filtered
    for address in "127.0.0.1", "127.9.9.9":
        with socket.create_server((address, 443)), socket.create_connection((address, 443)) as made:
            client = packed(socket.AF_INET, *made.getsockname())
            ours = bytes((TCP,)) + packed(socket.AF_INET, address, 443)
            # The end of the connection before may be told of meanwhile.
            told = [(new, flow.client) for new, flow in drain(events) if flow.ours == ours]
            assert told == [(True, client)]
            run("conntrack", "-F")
            told = [(new, flow.client) for new, flow in drain(events) if flow.ours == ours]
            assert told == [(False, client)]
    events.close()
