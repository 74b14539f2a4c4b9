"""Packets split into frames above the tree, on nodes with a ceiling of up to 500 Mbit/s."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vff_qos.commands import bootstrap
from vff_qos.core.htb import UNCLASSIFIED_MINOR, NodeCapacity, user_class
from vff_qos.core.settings import Settings
from vff_qos.errors import Refused
from vff_qos.kernel.packed import tc

from .harness import CLIENT, MARK, WAN, Memory, Network, root_of, run, shown_qdiscs
from .senders import Flood

_CEIL_BPS = 20_000_000
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2  # not in Python's socket module
#: Takes all that comes, and says what it was.
_SINK = f"""
import hashlib, socket
peer, _address = socket.create_server(("{CLIENT}", 5001)).accept()
found = hashlib.sha256()
while data := peer.recv(1 << 20):
    found.update(data)
print(found.hexdigest())
"""
#: Sends for ever.  BBR, which some machines have as their default, makes small packets.
_SOURCE = f"""
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, int(sys.argv[1]))
while sock.connect_ex(("{CLIENT}", 5001)):
    pass
while True:
    sock.sendall(bytes(1 << 20))
"""


def add_users(*minors: int) -> tc.Tc:
    """Their classes on the WAN device."""
    classes = tc.Tc()
    params = user_class(_CEIL_BPS, node=NodeCapacity(_CEIL_BPS))
    for minor in minors:
        key = tc.ClassKey(socket.if_nametoindex(WAN), 0x5100, minor)
        classes.apply(tc.add_class(key, 1, params, "pfifo"))
    return classes


@contextlib.contextmanager
def transfer(net: Network, minor: int) -> Iterator[None]:
    """A user's TCP connection to the client that always has something to send."""
    commands = (
        net.enter(sys.executable, "-c", _SINK),
        [sys.executable, "-c", _SOURCE, str(0x51000000 | minor)],
    )
    children = [subprocess.Popen(command) for command in commands]
    try:
        yield
        assert all(child.poll() is None for child in children)
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()


@pytest.mark.alone
def test_shares_do_not_depend_on_the_size_of_packets(
    net: Network,
    settings: Settings,
) -> None:
    """One user's packets have up to 64 KiB, the other's are frames."""
    bootstrap.reconcile(replace(settings, node_ceil_bps=_CEIL_BPS), Memory())
    large, small = 2, 3
    classes, index = add_users(large, small), socket.if_nametoindex(WAN)
    flood = Flood({small: 4})
    with transfer(net, large):
        flood.send(2.0)
        before = classes.sent_bytes(index, 0x5100)
        flood.send(3.0)
        after = classes.sent_bytes(index, 0x5100)
    flood.close()
    ratio = (after[large] - before[large]) / (after[small] - before[small])
    if settings.split:
        assert ratio == pytest.approx(1, rel=0.05)
    else:
        assert ratio > 2  # what splitting is for


@pytest.mark.alone
def test_users_do_not_pay_for_a_burst_of_what_is_nobodys(
    net: Network,
    settings: Settings,
) -> None:
    """Before their marks connections are nobody's, and may be many."""
    wide = replace(settings, node_ceil_bps=_CEIL_BPS, unclassified_download_bps=10**10)
    bootstrap.reconcile(wide, Memory())
    user = 2
    classes, index = add_users(user), socket.if_nametoindex(WAN)
    burst = Flood({UNCLASSIFIED_MINOR: 4})
    burst.send(2.0)
    burst.close()
    flood = Flood({user: 4})
    flood.send(1.0)
    before = classes.sent_bytes(index, 0x5100)[user]
    flood.send(2.0)
    sent = classes.sent_bytes(index, 0x5100)[user] - before
    flood.close()
    assert 8 * sent > 0.8 * 2.0 * _CEIL_BPS


def test_whole_and_split_replace_each_other(settings: Settings) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    for split in (not settings.split, settings.split):
        other = replace(settings, split=split)
        assert bootstrap.reconcile(other, memory)
        assert root_of(WAN) == root_of("vffqos0") == ("tbf 5101:" if split else "htb 5100:")
        assert bootstrap.reconcile(other, memory) == []


def test_another_mtu_changes_the_splitter_in_place(
    net: Network,
    settings: Settings,
) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    classes, index = add_users(MARK & 0xFFFF), socket.if_nametoindex(WAN)
    before = run("tc", "class", "show", "dev", WAN)
    run("ip", "link", "set", WAN, "mtu", "9000")
    net.on_client("ip", "link", "set", "c0", "mtu", "9000")
    lines = bootstrap.reconcile(settings, memory)
    what = "htb 5100: of {}, below a tbf that splits packets above 9036 bytes"
    expected = [f"change root qdisc {what.format(dev)}" for dev in ("vffqos0", WAN)]
    assert lines == (expected if settings.split else [])
    assert run("tc", "class", "show", "dev", WAN) == before
    assert bootstrap.reconcile(settings, memory) == []
    # What is larger than a splitter's size and cannot be split, it drops.
    through = classes.sent_bytes(index, 0x5100)[UNCLASSIFIED_MINOR]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        sock.sendto(bytes(8_972), (CLIENT, 9))
    assert classes.sent_bytes(index, 0x5100)[UNCLASSIFIED_MINOR] - through >= 9_014


def test_a_splitter_without_its_tree_is_healed_and_removed(
    settings: Settings,
) -> None:
    settings, memory = replace(settings, split=True), Memory()
    bootstrap.reconcile(settings, memory)
    for act in (bootstrap.reconcile, bootstrap.remove):
        run("tc", "qdisc", "del", "dev", WAN, "parent", "5101:1")
        assert act(settings, memory)
    assert "5101:" not in run("tc", "qdisc", "show")


def test_a_tbf_of_somebody_else_is_not_taken_for_a_splitter(
    settings: Settings,
) -> None:
    """Not even with its handle: it stays on other devices, and is foreign on ours."""
    run("ip", "link", "add", "other0", "type", "veth", "peer", "other1")
    foreign = ["root", "handle", "5101:", "tbf", "rate", "7mbit", "burst", "7k", "limit", "7k"]
    run("tc", "qdisc", "add", "dev", "other0", *foreign)
    before, memory = shown_qdiscs("dev", "other0"), Memory()
    bootstrap.reconcile(settings, memory)
    bootstrap.remove(settings, memory)
    assert shown_qdiscs("dev", "other0") == before
    run("tc", "qdisc", "add", "dev", WAN, *foreign)
    with pytest.raises(Refused, match="is tbf 5101:, which somebody set"):
        bootstrap.reconcile(settings, memory)


def test_split_packets_arrive_whole(net: Network, settings: Settings) -> None:
    """Bytes in packets of 64 KiB, through the splitter, at full speed."""
    bootstrap.reconcile(settings, Memory())
    sent = bytes(range(256)) * 40_000
    sink = subprocess.Popen(net.enter(sys.executable, "-c", _SINK), stdout=subprocess.PIPE)
    sock = socket.socket()
    while sock.connect_ex((CLIENT, 5001)):
        assert sink.poll() is None
    sock.sendall(sent)
    sock.close()
    assert sink.communicate()[0].decode().strip() == hashlib.sha256(sent).hexdigest()
    shown = json.loads(run("tc", "-j", "-s", "qdisc", "show", "dev", WAN))
    assert all(qdisc["drops"] == 0 for qdisc in shown)
