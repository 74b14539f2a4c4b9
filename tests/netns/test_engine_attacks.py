"""Attacks through the real engine, from end to end: ports used again, and names in a flood."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import engine, network
from lab.counters import inside
from lab.users import User, devices
from vff_qos.core.flow import Flow
from vff_qos.state import State

from .engine_node import (
    ATTACKER_IPV4,
    FORGERS,
    RACER,
    SOCKS_PORT,
    USERS,
    WITHIN_S,
    EngineNode,
    forged_name,
    vless_request,
)
from .harness import eventually

pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        importlib.util.find_spec("xray") is None, reason="needs the engine of tests/lab/xray.txt"
    ),
]

ALICE = USERS[0]
IVAN, JUDY = (user for user in USERS if user.port)
PORT = 5_555


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[EngineNode]:
    made = EngineNode(tmp_path)
    try:
        made.link()
        made.serve(engine.server((*USERS, RACER, *FORGERS)))
        made.start()
        yield made
    finally:
        made.close()


def connect(
    node: EngineNode, to_port: int, port: int = 0, address: str = network.INET_IPV4
) -> tuple[Flow, socket.socket]:
    """A customer's connection that does not say yet whose it is."""
    with inside(node.namespace):
        sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.connect((network.NODE_IPV4, to_port))
    node.sockets.append(sock)
    ends = socket.inet_aton(address), sock.getsockname()[1], socket.inet_aton(network.NODE_IPV4)
    return Flow(socket.IPPROTO_TCP, *ends, to_port), sock


def say(sock: socket.socket, user: User) -> None:
    """The request of a user, answered by the echo server."""
    sock.sendall(vless_request(user))
    sock.settimeout(10)
    assert sock.recv(64)


def holder(node: EngineNode, flow: Flow) -> str:
    """Whose class a flow is in; empty for nobody's."""
    state = State(str(node.directory / "state"))
    minors = {owner.minor: owner.key for owner in state.owners()}
    state.close()
    return minors.get(node.flows()[flow] & 0xFFFF, "")


def test_a_port_that_another_customer_uses_again_is_theirs(node: EngineNode) -> None:
    for user in (IVAN, JUDY, IVAN):
        flow, sock = connect(node, IVAN.server_port, PORT)
        assert holder(node, flow) == ""
        say(sock, user)
        eventually(lambda of=flow, who=user: holder(node, of) == who.email, WITHIN_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def test_one_port_of_a_translated_address_is_two_customers(node: EngineNode) -> None:
    # Others have used both inbounds before.
    for number, (user, port) in enumerate(((JUDY, JUDY.server_port), (ALICE, 443))):
        flow, sock = connect(node, port, PORT + 1 + number)
        say(sock, user)
        eventually(lambda of=flow, who=user: holder(node, of) == who.email, WITHIN_S)
    ivans, one = connect(node, IVAN.server_port, PORT)
    alices, other = connect(node, 443, PORT)
    say(other, ALICE)
    say(one, IVAN)
    eventually(
        lambda: (holder(node, ivans), holder(node, alices)) == (IVAN.email, ALICE.email), WITHIN_S
    )


def test_names_in_a_flood_take_no_connection_from_its_user(node: EngineNode) -> None:
    """Two accounts at another address name each connection of the victim before its line."""
    forgers = devices((*USERS[:1], *FORGERS))[1:]
    config = engine.client(forgers, node.fingerprint)
    for device, outbound in zip(forgers, config["outbounds"], strict=True):
        outbound["sendThrough"] = ATTACKER_IPV4
        socks = {"tag": f"socks-{device.number}", "protocol": "socks", "listen": "127.0.0.1"}
        config["inbounds"].append({**socks, "port": SOCKS_PORT + device.number})
        rule = {"inboundTag": [socks["tag"]], "outboundTag": device.uplink}
        config["routing"]["rules"].append(rule)
    node.connect(config)
    known, sock = connect(node, 443)
    say(sock, ALICE)
    eventually(lambda: holder(node, known) == ALICE.email, WITHIN_S)
    names = itertools.cycle((FORGERS[0].email, "nobody@lab", USERS[3].email))
    flows = [known]
    for number in range(12):
        flow, sock = connect(node, 443)
        for device in forgers:
            _ask(node, device.number, forged_name(flow, next(names)))
        if number % 3 == 0:
            node.ask_for(forgers[0], forged_name(flow, next(names)))
        say(sock, ALICE)
        for device in forgers:
            _ask(node, device.number, forged_name(known, next(names)))
        flows.append(flow)
        eventually(lambda of=flow: holder(node, of) == ALICE.email, WITHIN_S)
    assert b" rejected " in node.log.read_bytes()
    assert {holder(node, flow) for flow in flows} == {ALICE.email}


def _ask(node: EngineNode, number: int, name: bytes) -> None:
    """Ask for a connection to a name, and do not wait."""
    with inside(node.namespace):
        sock = socket.create_connection(("127.0.0.1", SOCKS_PORT + number))
    node.sockets.append(sock)
    with contextlib.suppress(ConnectionError):
        sock.sendall(b"\x04\x01\x00\x50" + bytes([0, 0, 0, 1]) + b"\0" + name + b"\0")
        sock.sendall(bytes(1 << 12))
