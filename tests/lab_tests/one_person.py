"""One person on Xray, Hysteria 2, a tunnel's port and WireGuard at once has one limit; a neighbour
behind the same address keeps their own.

``python -m lab_tests.one_person`` boots a node of its own, runs the role on it and fails with what
it expected and what it saw.  Part of ``make test-platforms``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial

from lab import Lab, Node, operate
from lab.counters import NamedCounters, Queues
from lab.hysteria import HOP_S, PATIENCE_S, Client, Hysteria
from lab.internet import Internet
from lab.labnode import GUEST
from lab.progress import say, step
from lab.streams import ECHO, Download, Target, connect, echoes
from lab.trials import PINGED
from lab.users import HYSTERIA_HOOK, MBIT, Device
from lab.wireguard import NODE as INSIDE
from lab.wireguard import WireGuard

from .scenario import USERS, Failed, exit_code, role

ALICE, NEIGHBOUR = "alice@lab", "hugo@lab"
#: Of alice, whatever she comes by, and of the neighbour behind her address: all that the emulated
#: node can encrypt in user space.
LIMITS = {ALICE: 20 * MBIT, NEIGHBOUR: 2 * MBIT}
DROP_IN = f"""users:
  {ALICE}: {{upload: 2mbit, download: {LIMITS[ALICE] // MBIT}mbit}}
  {NEIGHBOUR}: {{upload: 2mbit, download: {LIMITS[NEIGHBOUR] // MBIT}mbit}}
  dora@lab: {{upload: 2mbit, download: 2mbit, devices: 3, over: refuse}}
  judy@lab: {{upload: 20mbit, download: 20mbit, connections: 200}}
"""
IDENTITIES = """
services: {tunnel: {ports: [20190], protocol: tcp}}
networks: {wireguard: {prefixes: [PEER/32]}}
people: {alice@lab: ["service:tunnel", "network:wireguard"]}
"""
TUNNEL_PORT, INNER_PORT, WIREGUARD_PORT = 20190, 20091, 20092
WARMUP_S, HELD_S, HOPS, UNMARKED_MS, CUT_S, ONE_LIMIT = 15.0, 60.0, 20, 100.0, 1.0, 0.05
#: What a neighbour must keep of their limit while others meet theirs, in bytes of payload.
KEPT = 0.85
#: The target's port behind Hysteria; each client has a local one.
TARGET_PORT, LOCAL_PORT = 7000, 7100
#: Of the neighbour's datagrams, by which theirs are counted; of an Ethernet frame's header.
MARK, ETHERNET = 7, 14
COUNTER = f"""nft -f - <<END
table inet neighbour {{
 counter neighbour {{}}
 chain out {{ type filter hook output priority 0; meta mark {MARK} ct mark set {MARK}; }}
 chain in {{ type filter hook input priority 0; ct mark {MARK} counter name neighbour; }}
}}
END"""


def one_person(lab: Lab) -> None:
    """Users of Hysteria behind one address keep their own limits while they hop.  One of them is
    Xray's as well, has a tunnel's port and a WireGuard: all together have one limit.  Who is cut
    off is so within a second, on TCP and QUIC, and the neighbour is not.  A fourth device is
    refused, a 201st connection ends the oldest silent one, and nobody else stalls."""
    internet, node = lab.node.internet, lab.node
    alice, peer = lab.devices[0], lab.devices[-1]
    judy = next(device for device in lab.devices if device.user.email == "judy@lab")
    ports = iter(range(LOCAL_PORT, LOCAL_PORT + 100))
    node.put(GUEST / "unmarked.py", "/opt/lab/unmarked.py")
    internet.run("clients", COUNTER)
    with (
        by_hand(lab, peer.ipv4),
        closing(Target(internet, (TARGET_PORT, alice.target_port, judy.target_port))),
        WireGuard(lab, peer, WIREGUARD_PORT),
        Hysteria(lab, HYSTERIA_HOOK, 30000, "30001-30100") as engine,
    ):

        def start(email: str, uplink: str, mark: int = 0) -> tuple[int, Client]:
            port = next(ports)
            return port, engine.client(f"secret-of-{email}", uplink, {port: TARGET_PORT}, mark)

        def login(email: str, mark: int = 0) -> int:
            port, client = start(email, alice.uplink, mark)
            client.wait()
            return port

        logins = [login(ALICE), login(NEIGHBOUR, MARK)]
        by_quic, neighbour = (Download(internet, port) for port in logins)
        alices = {
            "Hysteria": by_quic,
            "Xray": Download(internet, alice.target_port),
            "a tunnel": Download(internet, TUNNEL_PORT, alice.uplink),
            "WireGuard": Download(internet, INNER_PORT, address=INSIDE),
        }
        time.sleep(WARMUP_S)
        with ThreadPoolExecutor(1) as pool:
            watch = f"/usr/bin/python3 /opt/lab/unmarked.py {alice.ipv4} {HOPS * HOP_S + 2}"
            watched = pool.submit(node.ssh, watch)
            wire = Wire(internet, alice, peer)
            began = time.monotonic()
            flows = json.loads(watched.result())
        time.sleep(max(0.0, began + HELD_S - time.monotonic()))
        rates, seconds = wire.rates_bps(), time.monotonic() - began
        wrong = []

        def check(holds: bool, text: str) -> None:
            say(text)
            if not holds:
                wrong.append(text)

        for email, streams in ((ALICE, list(alices.values())), (NEIGHBOUR, [neighbour])):
            off = rates[email] / LIMITS[email] - 1
            got = [8 * one.received(began, began + seconds) / seconds for one in streams]
            shown = " + ".join(f"{bps / MBIT:.2f}" for bps in got)
            check(
                abs(off) <= ONE_LIMIT,
                f"{email}: {rates[email] / MBIT:.2f} of {LIMITS[email] / MBIT:.0f} Mbit/s on the "
                f"wire ({off:+.1%}) for {seconds:.0f} s; of payload {shown}",
            )
        longest_ms = max((flow["ms"] for flow in flows), default=0.0)
        check(
            len(flows) >= HOPS and longest_ms <= UNMARKED_MS,
            f"{len(flows)} hops, none unmarked for longer than {longest_ms:.1f} ms",
        )
        with step("cutting a user off"):
            node.ssh(f"vff-qos cut {ALICE}")
        cut = time.monotonic()
        time.sleep(8)
        end = time.monotonic()
        for what, one in alices.items():
            more = one.received(cut + CUT_S, end)
            check(not more, f"cut off, over {what} come {more} bytes")
        for what in ("Xray", "a tunnel"):
            ended = alices[what].ended_s
            text = "does not end" if ended is None else f"ends {ended - cut:+.2f} s after the cut"
            check(ended is not None and ended <= cut + CUT_S, f"TCP over {what} {text}")

        def is_kept(since: float, until: float, meanwhile: str) -> None:
            kept = 8 * neighbour.received(since, until) / (until - since)
            text = f"the neighbour gets {kept / MBIT:.2f} Mbit/s {meanwhile}"
            check(kept >= KEPT * LIMITS[NEIGHBOUR], text)

        is_kept(cut, end, "while another user is cut off")
        began = time.monotonic()
        with step("a fourth device and a 201st connection"):
            fourth_device(lab, partial(start, "dora@lab"))
            one_connection_more(internet, judy.target_port)
        is_kept(began, time.monotonic(), "beside them")
        if wrong:
            raise Failed("\n".join(wrong))


class Wire:
    """What each of two users behind one address has had on the wire since then.

    The neighbour's packets are counted where they arrive; all others at that address, and at the
    WireGuard's, are the person's.
    """

    def __init__(self, internet: Internet, *devices: Device) -> None:
        self._ports = [device.router_port for device in devices]
        self._queues = Queues(internet.namespace("inet"))
        self._counters = NamedCounters(internet.namespace("clients"))
        self._began = self._read()

    def _read(self) -> tuple[float, int, int]:
        now, sent = time.monotonic(), self._queues.read()
        packets, size = self._counters.read()["neighbour"]
        return now, sum(sent[port] for port in self._ports), size + packets * ETHERNET

    def rates_bps(self) -> dict[str, float]:
        began, all_before, theirs_before = self._began
        ended, all_after, theirs_after = self._read()
        theirs = theirs_after - theirs_before
        rest = all_after - all_before - theirs
        return {
            who: 8 * size / (ended - began) for who, size in ((ALICE, rest), (NEIGHBOUR, theirs))
        }


@contextmanager
def by_hand(lab: Lab, peer: str) -> Iterator[None]:
    """Limits and identities as an operator writes them; servers of the node are what a tunnel
    would lead to."""
    policy, identities = "/etc/vff-qos/policy.d/one_person.yml", "/etc/vff-qos/identities.yml"
    given = IDENTITIES.replace("PEER", peer)
    sender = f"/usr/bin/python3 /opt/lab/sender.py {TUNNEL_PORT} {INNER_PORT}"
    theirs = "vff-qos explain service:tunnel 2>&1 | grep -q 'service:tunnel is alice@lab'"
    lab.node.put(GUEST / "sender.py", "/opt/lab/sender.py")
    lab.node.ssh(f"cp -p {identities} /opt/lab/")
    try:
        lab.node.write(policy, DROP_IN)
        lab.node.ssh(f"cat >{identities} <<'END'{given}END")
        lab.node.ssh("vff-qos check-config && vff-qos policy apply --yes")
        lab.node.ssh(f"systemd-run --quiet --collect --unit=sender-lab {sender}")
        lab.node.ssh(f'timeout {PATIENCE_S} sh -c "until {theirs}; do sleep 1; done"')
        yield
    finally:
        lab.node.ssh(
            f"systemctl stop sender-lab; rm {policy}; cp -p /opt/lab/identities.yml /etc/vff-qos; "
            f"vff-qos reset {ALICE}; vff-qos policy apply --yes"
        )


def fourth_device(lab: Lab, start: Callable[[str], tuple[int, Client]]) -> None:
    """Three devices of one user get through, the fourth does not."""
    internet, socks = lab.node.internet, []
    _first, *links = (device.uplink for device in lab.devices[:5])
    for link in links[:3]:
        port, client = start(link)
        client.wait()
        socks.append(connect(internet, port, ECHO))
        if not echoes(socks[-1]):
            raise Failed(f"device {len(socks)} of three does not get through")
    port, _client = start(links[3])
    told = "journalctl -q VFF_QOS_EVENT=devices VFF_QOS_EMAIL=dora@lab | grep -q ."
    lab.node.ssh(f"timeout {PATIENCE_S} sh -c 'until {told}; do sleep 1; done'")
    try:
        through = echoes(connect(internet, port, ECHO), within_s=3)
    except OSError:
        through = False
    if through:
        raise Failed("a fourth device gets through, where three are allowed")
    if not all(map(echoes, socks)):
        raise Failed("a device that is allowed does not get through beside a fourth")


def one_connection_more(internet: Internet, port: int, allowed: int = 200) -> None:
    """The oldest that is silent goes, and no other."""
    first = [connect(internet, port, ECHO) for _ in range(2)]
    established = all(map(echoes, first))
    time.sleep(3)  # silence is known in whole seconds
    rest = [connect(internet, port, ECHO) for _ in range(allowed - 2)]
    if not established or not all(map(echoes, rest)):
        raise Failed(f"not all of {allowed} allowed connections get through")
    busy, oldest = first
    if not echoes(busy):
        raise Failed("a connection that was allowed is gone")
    more = connect(internet, port, ECHO)
    if not echoes(more):
        raise Failed(f"connection {allowed + 1} does not get through, where the oldest should go")
    oldest.settimeout(PATIENCE_S)
    try:
        left = oldest.recv(1)
    except ConnectionResetError:
        left = b""
    if left or not all(map(echoes, (busy, more, *rest))):
        raise Failed(f"connection {allowed + 1} ended another one than the oldest silent one")
    for sock in (*first, *rest, more):
        sock.close()


def main() -> None:
    """On a node of its own."""
    if importlib.util.find_spec("hysteria2") is None:
        say("there is no Hysteria for this interpreter: left out")
        return
    with Lab(node=Node("person")) as lab:
        lab.start_engine((*USERS, PINGED))
        operate.make("qos", operate.inventory(lab.node, lab.node.dir / "inventory", role()))
        one_person(lab)


if __name__ == "__main__":
    sys.exit(exit_code(main))
