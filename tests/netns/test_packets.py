"""Packets through what bootstrap makes: none lost, each in its class, no mark of ours left."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from vff_qos.commands import bootstrap
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed import tc

from .harness import (
    MARK,
    NODE,
    NODE6,
    WAN,
    Memory,
    Network,
    add_user,
    exchange,
    run,
)

_ECHO = """
import select, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE
if sys.argv[1] == "server":
    sock.bind(("0.0.0.0", 443))
    print("ready", flush=True)
    while True:
        data, peer = sock.recvfrom(100)
        sock.sendto(data, peer)
sock.connect((sys.argv[2], 443))
sock.setblocking(False)
seen, sent, errors, start, until = set(), 0, 0, time.monotonic(), float(sys.argv[3])
print("ready", flush=True)
while (now := time.monotonic() - start) < until + 5.0 and (now < until or len(seen) < sent):
    if now < until and sent < now * 500:
        try:
            sock.send(sent.to_bytes(4, "big"))
        except OSError:
            errors += 1
        sent += 1
    wait = max(0.0, sent / 500 - now) if now < until else 0.1
    if select.select([sock], [], [], wait)[0]:
        try:
            seen.add(sock.recv(100))
        except OSError:
            errors += 1
print(sent, sent - len(seen))
"""


def lost_while(net: Network, action: Any) -> tuple[int, int]:
    """(sent, lost) datagrams, client to node and back, 500 a second around ``action``."""
    code = [sys.executable, "-c", _ECHO]
    server = subprocess.Popen([*code, "server"], stdout=subprocess.PIPE, text=True)
    assert server.stdout and server.stdout.readline() == "ready\n"
    client = subprocess.Popen(
        net.enter(*code, "client", NODE, "4"), stdout=subprocess.PIPE, text=True
    )
    assert client.stdout and client.stdout.readline() == "ready\n"
    time.sleep(0.5)
    action()
    sent, lost = client.communicate()[0].split()
    server.kill()
    server.wait()
    return int(sent), int(lost)


def test_packets_lost(net: Network, settings: Settings) -> None:
    memory = Memory()
    consent = replace(settings, service_ports=((443, 444),))
    steps = {
        "first": lambda: bootstrap.reconcile(settings, memory),
        "second": lambda: bootstrap.reconcile(settings, memory),
        "other ports": lambda: bootstrap.reconcile(consent, memory),
        "remove": lambda: bootstrap.remove(consent, memory),
    }
    lost = {name: lost_while(net, step) for name, step in steps.items()}
    print("(sent, lost):", lost)
    assert lost["second"][1] == 0
    assert lost["other ports"][1] == 0
    # The kernel stops a device for a moment when its root or clsact comes or goes; an emulated
    # machine takes 0.1 s for that.
    assert lost["first"][1] <= 100
    assert lost["remove"][1] <= 100


def counters(where: str) -> dict[str, int]:
    found = {}
    for item in json.loads(run("nft", "-j", "list", "counters"))["nftables"]:
        if "counter" in item and item["counter"]["table"] == where:
            found[item["counter"]["name"]] = item["counter"]["packets"]
    return found


def sent_packets(dev: str, minor: int) -> int:
    classes = tc.Tc()
    found = classes.classes(socket.if_nametoindex(dev), 0x5100)[minor].sent_packets
    classes.close()
    return found


_SPY = """
table inet spy {
  counter before_ours { }
  counter before_foreign { }
  counter after_ours { }
  counter after_any { }
  chain before {
    type filter hook prerouting priority -310
    meta mark & 0xffff0000 == 0x51000000 counter name before_ours
    meta mark 0x1234 counter name before_foreign
  }
  chain after {
    type filter hook prerouting priority -290
    meta mark & 0xffff0000 == 0x51000000 counter name after_ours
    meta mark != 0 counter name after_any
  }
  chain give {
    type filter hook input priority 10
    udp dport 443 ct mark set MARK
  }
}
"""


@pytest.mark.parametrize("address", [NODE, NODE6])
def test_marked_flow_is_in_its_class_both_ways_and_loses_the_mark(
    net: Network, full: Settings, address: str
) -> None:
    bootstrap.reconcile(full, Memory())
    for dev in (WAN, "vffqos0"):
        add_user(dev)
    run("nft", "-f", "-", stdin=_SPY.replace("MARK", hex(MARK)))
    exchange(net, address, 443)
    # The first packet comes before the mark.
    assert sent_packets("vffqos0", 0x2A) == 19
    assert sent_packets(WAN, 0x2A) == 20
    found = counters("spy")
    assert found["before_ours"] == 19
    assert found["after_ours"] == found["after_any"] == found["before_foreign"] == 0


@pytest.mark.parametrize("address", [NODE, NODE6])
def test_mark_of_other_software_never_reaches_routing(
    net: Network, full: Settings, address: str
) -> None:
    bootstrap.reconcile(full, Memory())
    run("nft", "-f", "-", stdin=_SPY.replace("MARK", "0x1234"))
    before = sent_packets("vffqos0", 0xFFFE)
    exchange(net, address, 443)
    assert sent_packets("vffqos0", 0xFFFE) - before >= 20
    assert set(counters("spy").values()) == {0}
    assert "mark=4660" in run(
        "conntrack", "-L", "-p", "udp", "-f", "ipv6" if ":" in address else "ipv4"
    )


def test_uploads_pass_without_the_ifb_once_nothing_leads_there(
    net: Network, full: Settings
) -> None:
    memory = Memory()
    bootstrap.reconcile(full, memory)
    theirs = ["dev", WAN, "ingress", "pref", "9", "protocol", "ip", "u32"]
    run("tc", "filter", "add", *theirs, "match", "u32", "0", "0", "flowid", "1:1")
    run("ip", "link", "del", "vffqos0")
    classes = tc.Tc()
    index = socket.if_nametoindex(WAN)
    assert classes.stop_redirecting(index, 0x5100) == 8
    assert classes.stop_redirecting(index, 0x5100) == 0
    classes.close()
    for address in (NODE, NODE6):
        exchange(net, address, 443)
    assert "u32" in run("tc", "filter", "show", "dev", WAN, "ingress")
    bootstrap.reconcile(full, memory)
    assert bootstrap.reconcile(full, memory) == []
    exchange(net, NODE, 443)


@pytest.mark.parametrize("port", [443, 20000, 20100])
def test_service_ports_go_through_the_ifb_and_others_do_not(
    net: Network, full: Settings, port: int
) -> None:
    memory = Memory()
    bootstrap.reconcile(full, memory)
    for address in (NODE, NODE6):
        before = sent_packets("vffqos0", 0xFFFE)
        exchange(net, address, port)
        assert sent_packets("vffqos0", 0xFFFE) - before == 20
        exchange(net, address, 20101)
        assert sent_packets("vffqos0", 0xFFFE) - before == 20
    bootstrap.reconcile(replace(full, service_ports=()), memory)
    exchange(net, NODE, 20101)
    assert sent_packets("vffqos0", 0xFFFE) - before >= 40
