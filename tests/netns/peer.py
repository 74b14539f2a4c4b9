"""A client in a namespace of its own, whose sockets are ours, and the events of its flows."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.flows.ends import FlowSeen, ServiceEnds
from vff_qos.kernel.packed.flow_events import FlowEvents

from .harness import CLIENT, CLIENT6, CLONE_NEWNET, LIBC, NODE, NODE6, Network, run

US: dict[int, str] = {socket.AF_INET: NODE, socket.AF_INET6: NODE6}
THEM: dict[int, str] = {socket.AF_INET: CLIENT, socket.AF_INET6: CLIENT6}
PORTS = ((443, 443), (20000, 20100))
FAMILIES = [socket.AF_INET, socket.AF_INET6]
BOTH = pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])


def wait_for_route(address: str) -> None:
    """The kernel adds the route of an IPv6 address of this host some time after the address."""
    family = "-6" if ":" in address else "-4"
    while f"local {address}" not in run("ip", family, "route", "show", "table", "local"):
        time.sleep(0.01)


def add_address(address: str) -> None:
    """One more address of this host."""
    run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
    wait_for_route(address)


class Peer(Network):
    """Sockets of this process can be made at the client's."""

    def __init__(self) -> None:
        super().__init__()
        while "state UP" not in self.on_client("ip", "link", "show", "dev", "c0"):
            time.sleep(0.01)
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = f"/proc/{self.client.pid}/ns/net"
        self.there = os.open(there, os.O_RDONLY | os.O_CLOEXEC)
        for address in US.values():
            wait_for_route(address)
        with self.entered():
            for address in THEM.values():
                wait_for_route(address)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What is opened within is there."""
        assert LIBC.setns(self.there, CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert LIBC.setns(self.home, CLONE_NEWNET) == 0

    def close(self) -> None:
        """End it."""
        super().close()
        os.close(self.home)
        os.close(self.there)

    def udp(self, family: int, port: int = 0) -> socket.socket:
        """A datagram socket there."""
        with self.entered():
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.bind((THEM[family], port))
        return made

    def tcp(self, family: int, port: int, to: tuple[str, int]) -> socket.socket:
        """A connection from there."""
        with self.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((THEM[family], port))
        made.connect(to)
        return made


def packed(family: int, address: str, port: int) -> bytes:
    return socket.inet_pton(family, address) + port.to_bytes(2, "big")


def end_of(made: socket.socket) -> bytes:
    """The client end of a socket of the peer."""
    return packed(made.family, *made.getsockname()[:2])


def our_end(proto: int, family: int, port: int = 443) -> bytes:
    return bytes((proto,)) + packed(family, US[family], port)


TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def ends_of(ports: tuple[tuple[int, int], ...] = PORTS) -> ServiceEnds:
    return ServiceEnds(ports, [socket.inet_pton(f, a) for f, a in US.items()])


def drain(events: FlowEvents) -> list[tuple[bool, FlowSeen]]:
    """All there is; the kernel queues an event before the packet goes on."""
    drained = events.drain()
    assert (drained.lost, drained.more) == (False, False)
    return drained.events


def one(events: FlowEvents, is_new: bool) -> FlowSeen:
    found = drain(events)
    assert [new for new, _ in found] == [is_new], found
    return found[0][1]


def sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net/netfilter", name).write_text(str(value))


def receive(at: socket.socket) -> None:
    at.settimeout(5)
    assert at.recvfrom(100)[0]


def deliver(client: socket.socket, port: int, to: str | None = None) -> None:
    """A datagram to this host, which has come through conntrack when this returns."""
    with socket.socket(client.family, socket.SOCK_DGRAM) as server:
        server.bind((to or US[client.family], port))
        client.sendto(b"x", (to or US[client.family], port))
        receive(server)
