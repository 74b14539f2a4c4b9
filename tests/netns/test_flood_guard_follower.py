"""The follower finds out who floods, and nft paces them: real log, real flows, real table."""

from __future__ import annotations

import json
import socket

from vff_qos.kernel.packed.conntrack import prepare

from .customers import CUSTOMERS, NODE, STRANGER, Site, stamp
from .harness import eventually, run


def paced() -> set[str]:
    """Addresses in the set of nft."""
    listing = json.loads(run("nft", "-j", "list", "set", "inet", "vff_qos", "flood4"))["nftables"]
    (found,) = [item["set"] for item in listing if "set" in item]
    return {str(element["elem"]["val"]) for element in found.get("elem", [])}


def refused(address: str, port: int, text: str = "a b") -> bytes:
    """The engine's line about a refused name."""
    return (
        f"{stamp()} from {address}:{port} rejected  proxy/trojan: failed to read address and port "
        f"> common/protocol: invalid domain name: {text}\n"
    ).encode()


def test_who_floods_is_paced_and_nobody_else(site: Site) -> None:
    node, (honest, victim) = site.node, CUSTOMERS[:2]
    bystander = site.connect(victim)
    node.write(bystander.line("victim@x"))
    eventually(lambda: site.mark(bystander))
    # 500 connections at once, each with its line, are no flood.
    burst = [site.connect(honest) for _ in range(500)]
    node.write(*(connection.line(f"user{n % 7}@x") for n, connection in enumerate(burst)))
    eventually(lambda: all(map(site.mark, burst)), 20)
    # A stranger's requests are refused, and name the victim in forged lines about other refusals.
    strangers = [site.connect(STRANGER) for _ in range(60)]
    for connection in strangers:
        port = connection.sock.getsockname()[1]
        forged = refused(victim, 40_000 + port % 1_000).decode()
        node.write(refused(STRANGER, port, f"a\n{forged}" * 3))
    eventually(lambda: paced() == {STRANGER})
    # What is open goes on; new connections of others, too; those of the stranger soon do not.
    for connection in (bystander, burst[0], strangers[0]):
        connection.sock.send(b"alive")
    another = site.connect(victim)
    node.write(another.line("victim@x"))
    eventually(lambda: site.mark(another))
    assert _opens(site, STRANGER, 30) < 20
    assert paced() == {STRANGER}
    eventually(lambda: site.status()["floods_held"] == 1, 10)


def _opens(site: Site, address: str, tries: int) -> int:
    """How many of so many first datagrams reach the node."""
    udp, ours = socket.IPPROTO_UDP, (NODE[0], 443)
    sent = [prepare(site.connect(address, ours=ours, proto=udp).flow) for _ in range(tries)]
    return sum(mark is not None for mark in site.node.conntrack.get_marks(sent))
