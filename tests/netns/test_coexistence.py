"""A node that other software shares: its rules and marks beside ours, in the kernel itself.

What needs their programs (ufw, firewalld, Docker, systemd-networkd, netplan), or devices that this
kernel may lack (VLAN, bond), runs on the lab node: ``lab_tests/coexistence.py``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.kernel.packed.netlink import Netlink
from vff_qos.kernel.packed.qdisc_list import read_qdiscs

from .harness import Client, root_of, run, status
from .healing import HealingNode, plan_without_filters
from .neighbours import answers, counted, others

#: What `wg-quick up` loads for a tunnel that takes all traffic (wireguard-tools).
WG_QUICK = """
table ip wg-quick-wg0 {
  chain preraw { type filter hook prerouting priority -300; iifname != "wg0" ip daddr 10.200.0.2 \
fib saddr type != local drop; }
  chain premangle { type filter hook prerouting priority -150; \
meta l4proto udp meta mark set ct mark; }
  chain postmangle { type filter hook postrouting priority -150; meta l4proto udp \
meta mark 0x0000ca6c ct mark set meta mark; }
}
"""
#: Tailscale's, as its nftables runner makes them (util/linuxfw): its bits are 0xff0000.
TAILSCALE = """
table ip filter {
  chain ts-forward {
    iifname "tailscale0*" meta mark set meta mark and 0xff00ffff xor 0x00040000
    meta mark and 0x00ff0000 == 0x00040000 accept
  }
  chain FORWARD { type filter hook forward priority 0; policy accept; jump ts-forward; }
}
table ip nat {
  chain ts-postrouting { meta mark and 0x00ff0000 == 0x00040000 masquerade; }
  chain POSTROUTING { type nat hook postrouting priority 100; policy accept; jump ts-postrouting; }
}
table ip mangle {
  chain PREROUTING { type filter hook prerouting priority -150; policy accept; \
ct state established,related meta mark set ct mark and 0x00ff0000; }
  chain OUTPUT { type route hook output priority -150; policy accept; \
ct state new meta mark and 0x00ff0000 != 0 ct mark set meta mark and 0x00ff0000; }
}
"""
#: A shaper or accounting of its own: `iptables -t mangle -A POSTROUTING -j MARK --set-mark 7`.
SHAPER = """
table ip mangle {
  chain POSTROUTING { type filter hook postrouting priority -150; policy accept; meta mark set 7; }
}
"""
#: Later than mangle: at the priority of source NAT.
LATE_SHAPER = SHAPER.replace("-150", "100")
#: Docker's, as iptables-nft has them for a container with a published port.
DOCKER = """
table ip nat {
  chain DOCKER { iifname "docker0" return; \
iifname != "docker0" tcp dport 8080 dnat to 172.17.0.2:80; }
  chain PREROUTING { type nat hook prerouting priority -100; policy accept; \
fib daddr type local jump DOCKER; }
  chain POSTROUTING { type nat hook postrouting priority 100; policy accept; \
oifname != "docker0" ip saddr 172.17.0.0/16 masquerade; }
}
table ip filter {
  chain FORWARD { type filter hook forward priority 0; policy drop; oifname "docker0" accept; }
}
"""
RULES = {
    "wg-quick": WG_QUICK,
    "tailscale": TAILSCALE,
    "shaper": SHAPER,
    "late-shaper": LATE_SHAPER,
    "docker": DOCKER,
}
NAT_SPY = """
table ip spy {
  counter seen { }
  chain post {
    type filter hook postrouting priority 100
    meta mark and 0xff000000 == 0x51000000 counter name seen
  }
}
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealingNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("whose", RULES)
def test_whatever_others_mark_packets_leave_in_their_class(
    node: HealingNode, whose: str, when: str
) -> None:
    """Chains of one priority run in an order that depends on who came last."""
    run("nft", "-f", "-", stdin=RULES[whose])
    if when == "before":
        run("nft", "delete", "table", "inet", "vff_qos")
        node.wait(node.is_whole)
    theirs, mark = others(), node.mark(node.client)
    bob = Client("127.0.0.1", 4430)
    node.write(bob.line("bob@x"))
    node.wait(lambda: node.mark(bob))
    for client in (node.client, bob):
        assert answers(node, client) > 0
    assert node.mark(node.client) == mark
    assert others() == theirs
    node.stop_calmly()
    node.run("remove")
    assert others() == theirs
    assert "vff_qos" not in run("nft", "list", "tables")


def test_source_nat_sees_no_mark_of_ours(node: HealingNode) -> None:
    """With several trees a class's number has the bits by which Tailscale masquerades."""
    run("nft", "-f", "-", stdin=NAT_SPY)
    assert answers(node, node.client) > 0
    assert counted("ip", "spy") == 0


def test_an_alternative_name_is_the_wan_device_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = HealingNode(tmp_path)
    try:
        run("ip", "link", "property", "add", "dev", "wan0", "altname", "enx0123456789ab-uplink")
        settings = tmp_path / "settings.yml"
        settings.write_text(settings.read_text().replace("auto", "enx0123456789ab-uplink"))
        node.stop()
        assert node.run("bootstrap", "--plan") == "no change\n"
        node.start()
        run("tc", "qdisc", "del", "dev", "wan0", "root")
        node.wait(node.is_whole)
        found = status(node)
        assert (found["verdict"], found["findings"]) == ("OK", []), found["findings"]
        assert node.run("gc", "--dry-run") == "no change\n"
        node.stop()
        node.run("remove")
        assert root_of("wan0") == "noqueue 0:"
    finally:
        node.stop()


def test_another_mtu_is_followed_while_traffic_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = HealingNode(tmp_path, "wan_ceil: 400mbit\n")
    try:
        before = run("tc", "class", "show", "dev", "wan0")

        def split_above() -> set[int]:
            """From how many bytes on, times a constant, the two devices split packets."""
            with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as netlink:
                names = dict(socket.if_nameindex())
                return {
                    qdisc.limit for qdisc in read_qdiscs(netlink, names, [0x5100]) if qdisc.limit
                }

        first = split_above()
        for mtu in ("1280", "9000", "1500"):
            last = split_above()
            run("ip", "link", "set", "wan0", "mtu", mtu)
            node.wait(lambda last=last: not split_above() & last)
            assert run("tc", "class", "show", "dev", "wan0") == before
        assert split_above() == first
    finally:
        node.stop()
