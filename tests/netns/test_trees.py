"""A tree for each queue, in a real kernel: made, left alone, healed, changed, taken away.

A kernel without cls_fw and act_skbedit runs all of it with `queues.lead_packets` in the place of
the filters.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.commands import bootstrap
from vff_qos.commands.killswitch import resume, suspend
from vff_qos.core.htb import user_class
from vff_qos.core.layout import Layout
from vff_qos.core.settings import Settings
from vff_qos.errors import Refused
from vff_qos.journal import Journal
from vff_qos.kernel.devices import used_queues
from vff_qos.kernel.our_trees import majors_found
from vff_qos.kernel.packed.tc import ClassKey, Tc, add_class
from vff_qos.lock import Lock
from vff_qos.state import KERNEL_RECORD, State

from .connections import connection, marks, preflight
from .harness import Memory, Network, root_of, run, shown_qdiscs, snapshot
from .queues import lead_packets, redirect_uploads, use_queues

TWO = Layout(0x5100, 2)
#: Packets are split only where there is one tree.
pytestmark = pytest.mark.parametrize("settings", [False], ids=["whole"], indirect=True)


@pytest.fixture
def two(settings: Settings) -> Settings:
    """Settings for two trees, on a WAN device that uses four queues."""
    run("ip", "link", "add", "mq0", "numtxqueues", "4", "numrxqueues", "4", "type", "veth",
        "peer", "name", "mq1", "numtxqueues", "4", "numrxqueues", "4")  # fmt: skip
    for device in ("mq0", "mq1"):
        run("ip", "link", "set", device, "up")
    return replace(settings, wan="mq0", node_ceil_bps=10**10, trees_wanted=2)


def add_users(layout: Layout, *minors: int) -> None:
    """Classes of 50 Mbit/s on both devices, each in its tree."""
    tc = Tc()
    for device in ("vffqos0", "mq0"):
        for minor in minors:
            key = ClassKey(socket.if_nametoindex(device), layout.tree(minor), minor)
            tc.apply(add_class(key, 1, user_class(50_000_000), "pfifo"))
    tc.close()


def minors(device: str, layout: Layout = TWO) -> set[int]:
    tc = Tc()
    found = set(tc.params(socket.if_nametoindex(device), *layout))
    tc.close()
    return found


def qdiscs(device: str) -> dict[str, str]:
    """{handle: parent} of the qdiscs of a device that somebody set."""
    lines = (line.split() for line in run("tc", "qdisc", "show", "dev", device).splitlines())
    return {
        words[2]: words[4] if words[3] == "parent" else words[3]
        for words in lines
        if words[2] != "0:"
    }


def test_trees_are_made_once_and_taken_away_whole(two: Settings) -> None:
    before, memory = snapshot(), Memory()
    planned = bootstrap.reconcile(two, memory, dry_run=True)
    assert snapshot() == before and memory.values == {}
    assert bootstrap.reconcile(two, memory) == planned
    for device in ("mq0", "vffqos0"):
        assert root_of(device) == "mq 51ff:"
        assert qdiscs(device) == {
            "51ff:": "root", "5100:": "51ff:1", "5101:": "51ff:2", "fffe:": "5100:fffe",
            "5181:": "5101:fffe", "ffff:": "ffff:fff1",
        }  # fmt: skip
    assert used_queues("mq0") == 4 and "numtxqueues 2" in run("ip", "-d", "link", "show", "vffqos0")
    assert "ct mark 0x51000000/8 meta mark" in run("nft", "list", "table", "inet", "vff_qos")
    assert preflight(two) == []
    assert bootstrap.reconcile(two, memory) == []
    assert majors_found() == {0x5100, 0x5101}
    bootstrap.remove(two, memory)
    assert snapshot() == before
    assert memory.get_value(KERNEL_RECORD) is None


def test_the_tree_of_one_queue_is_healed_alone(two: Settings) -> None:
    memory = Memory()
    bootstrap.reconcile(two, memory)
    add_users(TWO, 0x2A, 0x2B)
    run("tc", "qdisc", "del", "dev", "mq0", "parent", "51ff:2")
    healed = bootstrap.reconcile(two, memory)
    assert healed[:2] == [
        "add qdisc htb 5101: of mq0, queue 1",
        "add class 5101:1 of mq0: node ceiling, 5gbit",
    ]
    assert all("5101:" in line for line in healed)
    assert minors("mq0") & {0x2A, 0x2B} == {0x2A}
    assert minors("vffqos0") >= {0x2A, 0x2B}
    assert bootstrap.reconcile(two, memory) == []


@pytest.mark.parametrize("harm", ["mq0", "vffqos0"])
def test_a_root_that_somebody_takes_away_comes_back_with_all_trees(
    two: Settings, harm: str
) -> None:
    memory = Memory()
    bootstrap.reconcile(two, memory)
    there = snapshot()
    run("tc", "qdisc", "del", "dev", harm, "root")
    assert bootstrap.reconcile(two, memory)[0] == f"add root qdisc mq 51ff: of {harm}, 2 trees"
    assert snapshot() == there


def test_more_trees_and_fewer_take_connections_along(two: Settings) -> None:
    memory, one = Memory(), replace(two, trees_wanted=1)
    bootstrap.reconcile(one, memory)
    kept_as_one = memory.values[KERNEL_RECORD]
    assert "trees" not in kept_as_one
    connection(1, 0x5100002A)
    connection(2, 0x5100002B)
    connection(3, 0xD100002D)  # provisional
    connection(4, 0x5100517F)  # a minor whose leaf would have the handle of an mq's tree
    connection(5, 0x51010001)  # other software's, as long as there is one tree
    connection(6, 0x00000007)
    assert "move the marks of 3 connections from 5100: to 5100: to 5101:" in (
        bootstrap.reconcile(two, memory)
    )
    ours = {1: 0x5100002A, 2: 0x5101002B, 3: 0xD101002D, 4: 0}
    assert {port: marks()[port] for port in ours} == ours and marks()[6] == 7
    four = replace(two, trees_wanted=4)
    bootstrap.reconcile(four, memory)
    ours = {1: 0x5102002A, 2: 0x5103002B, 3: 0xD101002D, 4: 0}
    assert {port: marks()[port] for port in ours} == ours and marks()[6] == 7
    assert bootstrap.reconcile(four, memory) == []
    bootstrap.reconcile(one, memory)
    assert memory.values[KERNEL_RECORD] == kept_as_one
    ours = {1: 0x5100002A, 2: 0x5100002B, 3: 0xD100002D, 4: 0}
    assert {port: marks()[port] for port in ours} == ours and marks()[6] == 7
    assert root_of("mq0") == root_of("vffqos0") == "htb 5100:"
    assert bootstrap.reconcile(one, memory) == []


def test_fewer_queues_have_fewer_trees(two: Settings) -> None:
    memory, auto = Memory(), replace(two, trees_wanted=3)
    bootstrap.reconcile(auto, memory)
    assert memory.get_value(KERNEL_RECORD)["trees"] == 3
    use_queues("mq0", 2)
    bootstrap.reconcile(auto, memory)
    assert memory.get_value(KERNEL_RECORD)["trees"] == 2
    assert memory.get_value(KERNEL_RECORD)["trees_why"] == "the WAN device uses 2 transmit queues"
    use_queues("mq0", 1)
    assert "one tree: the WAN device uses one transmit queue" in bootstrap.reconcile(auto, memory)
    assert root_of("mq0") == "htb 5100:"


def test_a_ceiling_that_one_tree_shares_has_one_that_splits_packets(two: Settings) -> None:
    """And back: the handle of the second tree is that of the splitter."""
    memory, ceiling = Memory(), replace(two, trees_wanted=0, node_ceil_bps=20_000_000, split=True)
    for _ in range(2):
        bootstrap.reconcile(two, memory)
        assert root_of("mq0") == root_of("vffqos0") == "mq 51ff:"
        assert bootstrap.reconcile(two, memory) == []
        bootstrap.reconcile(ceiling, memory)
        assert root_of("mq0") == root_of("vffqos0") == "tbf 5101:"
        assert bootstrap.reconcile(ceiling, memory) == []


def test_a_lost_state_changes_no_tree_and_no_mark(two: Settings) -> None:
    bootstrap.reconcile(two, Memory())
    add_users(TWO, 0x2A, 0x2B)
    connection(1, 0x5101002B)
    memory = Memory()
    bootstrap.reconcile(two, memory)
    assert minors("mq0") >= {0x2A, 0x2B} and marks()[1] == 0x5101002B
    assert memory.get_value(KERNEL_RECORD)["trees"] == 2


@pytest.mark.parametrize("root", ["mq", "handle 1234: mq"])
def test_an_mq_of_somebody_comes_back_with_its_leaves(two: Settings, root: str) -> None:
    run("tc", "qdisc", "replace", "dev", "mq0", "root", *root.split())
    handle = run("tc", "qdisc", "show", "dev", "mq0", "root").split()[2]
    run("tc", "qdisc", "replace", "dev", "mq0", "parent", f"{handle}2", "handle", "2:", "pfifo",
        "limit", "71")  # fmt: skip
    before, memory = shown_qdiscs("dev", "mq0"), Memory()
    with pytest.raises(Refused, match="which somebody set"):
        bootstrap.reconcile(two, memory)
    consent = replace(two, take_foreign_root=True)
    bootstrap.reconcile(consent, memory)
    assert root_of("mq0") == "mq 51ff:"
    bootstrap.remove(consent, memory)
    assert shown_qdiscs("dev", "mq0") == before


def test_the_kill_switch_lifts_the_limits_of_every_tree(two: Settings, tmp_path: Path) -> None:
    memory = Memory()
    bootstrap.reconcile(replace(two, unclassified_upload_bps=10**9), memory)
    for port, mark in {1: 0x5100002A, 2: 0x5101002B, 3: 0xD101002D, 4: 7}.items():
        connection(port, mark)
    before, running = marks(), replace(two, trees=2)
    state, lock, journal = State(str(tmp_path)), Lock(str(tmp_path)), Journal(by_hand=True)
    assert suspend(running, state, lock, journal) == 3
    assert marks() == {1: 0, 2: 0, 3: 0, 4: 7}
    tc = Tc()
    for device in ("vffqos0", "mq0"):
        for major in TWO.majors:
            shared = tc.shared_classes(socket.if_nametoindex(device), major, (1, 0xFFFE))
            assert [params.ceil_bps for params in shared.values()] == [10**11, 10**11]
    tc.close()
    assert resume(state, lock, journal) == 3
    assert marks() == before


def sent(device: str, layout: Layout = TWO) -> dict[int, int]:
    tc = Tc()
    found = dict(tc.sent_bytes(socket.if_nametoindex(device), *layout))
    tc.close()
    return found


def test_packets_of_a_user_pass_the_tree_that_their_mark_names(two: Settings, net: Network) -> None:
    """In both directions, at once with those of a user on another queue."""
    bootstrap.reconcile(two, Memory())
    add_users(TWO, 0x2A, 0x2B)
    lead_packets("mq0", "vffqos0")
    redirect_uploads("mq0", "vffqos0", 20_000, *TWO)
    run("ip", "address", "add", "192.0.2.1/24", "dev", "mq0")
    run("ip", "neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "mq0")
    peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    peer.bind(("mq1", 0))
    words = run("ip", "-br", "link", "show", "mq0").split()
    to = bytes.fromhex(words[2].replace(":", ""))
    for count, minor in ((20, 0x2A), (30, 0x2B)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TWO.mark(minor))
            for _ in range(count):
                sock.sendto(bytes(1_000), ("192.0.2.9", 9))
        for _ in range(count):
            peer.send(_datagram(to, 20_000 + minor))
    peer.close()
    down, up = sent("mq0"), sent("vffqos0")
    assert (down[0x2A], down[0x2B]) == (20 * 1_042, 30 * 1_042)
    assert (up[0x2A], up[0x2B]) == (20 * 1_042, 30 * 1_042)
    # The sum of all trees, as of one.
    assert down[1] >= 50 * 1_042 and up[1] == 50 * 1_042


def _datagram(to: bytes, port: int) -> bytes:
    """A UDP packet of 1,000 bytes from 192.0.2.9 to 192.0.2.1, in its frame."""
    header = bytearray.fromhex("45000404000000004011 0000 c0000209 c0000201".replace(" ", ""))
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    udp = b"".join(n.to_bytes(2, "big") for n in (4_000, port, 1_008, 0))
    return to + bytes.fromhex("0200000000090800") + header + udp + bytes(1_000)
