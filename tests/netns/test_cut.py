"""Users who are cut off: real flows, real sockets, the real table."""

from __future__ import annotations

import contextlib
import socket

import pytest

from vff_qos.core.flow import Flow
from vff_qos.core.htb import ClassState
from vff_qos.core.plan.nft_table import POST_PRIORITY
from vff_qos.kernel.packed.sockets import end_connections
from vff_qos.kernel.packed.tc import Tc

from .customers import CUSTOMERS, NODE, TCP, UDP, Connection, Site, is_reset, lives
from .harness import MAJOR, cut_marks, eventually, run

ALICE, BOB = "alice@x", "bob@x"


def given(site: Site, *emails: str, proto: int = TCP) -> list[Connection]:
    """Connections from one address, each its user's."""
    found = [site.connect(CUSTOMERS[0], proto=proto) for _ in emails]
    site.node.write(*(c.line(email) for c, email in zip(found, emails, strict=True)))
    eventually(lambda: site.holders(*found) == list(emails))
    return found


def test_open_connections_end_at_once_and_the_neighbours_go_on(site: Site) -> None:
    alices, bobs = given(site, ALICE, BOB)
    assert "cut off" in site.node.run("cut", ALICE)
    # Without a packet of theirs: idle ones end, too.
    eventually(lambda: is_reset(alices), 1.0)
    assert lives(bobs)


def test_new_ones_end_as_soon_as_they_are_known_until_it_is_over(site: Site) -> None:
    given(site, ALICE)
    site.node.run("cut", ALICE)
    again = site.connect(CUSTOMERS[0])
    site.node.write(again.line(ALICE))
    eventually(lambda: is_reset(again))
    site.node.run("reset", ALICE)
    assert not cut_marks()
    (back,) = given(site, ALICE)
    assert lives(back)


def test_datagrams_are_dropped_and_the_neighbours_are_not(site: Site) -> None:
    alices, bobs = given(site, ALICE, BOB, proto=UDP)
    site.node.run("cut", ALICE)
    dropped = "counter packets"
    run("nft", "insert", "rule", "inet", "vff_qos", "cut_off", "counter")
    for _ in range(5):
        alices.sock.send(b"lost")
        bobs.sock.send(b"heard")
    eventually(lambda: f"{dropped} 5 " in run("nft", "list", "chain", "inet", "vff_qos", "cut_off"))


def test_a_policy_that_cuts_and_its_end(site: Site) -> None:
    (alices,) = given(site, ALICE)
    site.node.write_policy(f"users: {{{ALICE}: {{blocked: cut}}}}")
    eventually(lambda: is_reset(alices), 15)
    site.node.write_policy("users: {}")
    eventually(lambda: not cut_marks(), 15)
    (back,) = given(site, ALICE)
    assert lives(back)


def test_it_outlives_the_agent_and_a_table_made_anew(site: Site) -> None:
    given(site, ALICE)
    site.node.run("cut", ALICE)
    (mark,) = cut_marks()
    site.node.stop()
    run("nft", "delete", "table", "inet", "vff_qos")
    site.node.make_table()
    assert not cut_marks()
    site.node.start()
    eventually(lambda: cut_marks() == {mark})


def test_the_kill_switch_lets_them_back(site: Site) -> None:
    given(site, ALICE)
    site.node.run("cut", ALICE)
    site.node.run("suspend")
    assert not cut_marks()
    late = site.connect(CUSTOMERS[0])
    assert lives(late)


def test_a_tuple_that_is_not_there_ends_no_listener(site: Site) -> None:
    absent = Flow(TCP, socket.inet_aton(CUSTOMERS[0]), 9, socket.inet_aton(NODE[0]), 443)
    assert end_connections([absent]) == []
    assert lives(site.connect())


def test_one_address_is_cut_off_and_neither_others_nor_the_rest(site: Site) -> None:
    here, neighbour = given(site, ALICE, BOB)
    there = site.connect(CUSTOMERS[1])
    site.node.write(there.line(ALICE))
    eventually(lambda: site.holders(there) == [ALICE])
    said = site.node.run("cut", ALICE, "--address", CUSTOMERS[0], "--for", "1h")
    assert f"cut off from {CUSTOMERS[0]}" in said and "1 connections ended" in said
    eventually(lambda: is_reset(here), 1.0)
    again = site.connect(CUSTOMERS[0])
    site.node.write(again.line(ALICE))
    eventually(lambda: is_reset(again))
    assert lives(neighbour) and lives(there)
    assert f"cut off from {CUSTOMERS[0]} by" in site.node.run("explain", ALICE)
    # It outlives the agent, and ends when it is reset.
    site.node.stop()
    site.node.start()
    late = site.connect(CUSTOMERS[0])
    site.node.write(late.line(ALICE))
    eventually(lambda: is_reset(late))
    assert f"no longer cut off from {CUSTOMERS[0]}" in site.node.run("reset", ALICE)
    (back,) = given(site, ALICE)
    assert lives(back)


def test_one_address_is_free_again_when_its_time_is_over(site: Site) -> None:
    given(site, ALICE)
    site.node.run("cut", ALICE, "--address", CUSTOMERS[0], "--for", "2s")

    def is_back() -> bool:
        found, later = site.connect(CUSTOMERS[0]), site.connect(CUSTOMERS[1])
        site.node.write(found.line(ALICE))
        eventually(lambda: site.mark(found) or is_reset(found))
        # What is said later is heard later: by then the one before has ended, if it has to.
        site.node.write(later.line(BOB))
        eventually(lambda: site.mark(later))
        return not is_reset(found)

    assert not is_back()
    eventually(is_back)


def test_the_next_connection_from_an_ended_ones_port_is_nobodys(site: Site) -> None:
    """A carrier's NAT gives a port to the next customer within seconds."""
    (alices,) = given(site, ALICE)
    site.node.run("cut", ALICE)
    eventually(lambda: is_reset(alices), 1.0)
    port = alices.source[1]
    alices.reset()
    bobs = site.connect(CUSTOMERS[0], port)
    assert lives(bobs)
    site.node.write(bobs.line(BOB))
    eventually(lambda: site.holders(bobs) == [BOB])
    assert lives(bobs)


class Downloads:
    """What the node sends goes by the class of its mark, as the filter of a real node has it."""

    def __init__(self, site: Site, *connections: Connection) -> None:
        self.marks = [site.mark(connection) for connection in connections]
        classes = ", ".join(f"{mark:#x} : 5100:{mark & 0xFFFF:x}" for mark in self.marks)
        run(
            "nft", "-f", "-",
            stdin="table inet lab { chain out { type filter hook postrouting "
            f"priority {POST_PRIORITY + 1}; "
            f"meta priority set meta mark map {{ {classes} }}; }}; }}",
        )  # fmt: skip

    def state(self, which: int = 0) -> ClassState:
        """The user's class at the WAN device."""
        with contextlib.closing(Tc()) as tc:
            found = tc.classes(socket.if_nametoindex("wan0"), MAJOR)
        return found[self.marks[which] & 0xFFFF]


def test_what_waits_in_the_queue_goes_and_the_reset_does_not_wait(site: Site) -> None:
    site.node.write_policy(f"users: {{{ALICE}: {{download: 100kbit}}}}")
    (alices,) = given(site, ALICE)
    downloads = Downloads(site, alices)
    ours, _end = site.listeners[0].accept()
    ours.setblocking(False)
    with ours, contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65_536))
    alices.sock.settimeout(20)
    eventually(lambda: alices.sock.recv(1 << 20) and downloads.state().backlog_bytes > 20_000)
    site.node.run("cut", ALICE)
    assert downloads.state().backlog_bytes == 0
    # At the trickle 20 kB take 20 s.
    alices.sock.settimeout(5)
    with pytest.raises(ConnectionResetError):
        while True:
            assert alices.sock.recv(1 << 20)


def test_datagrams_to_them_end_too_and_the_sender_hears_of_it(site: Site) -> None:
    site.node.write_policy(f"users: {{{ALICE}: {{download: 100kbit}}}}")
    alices, bobs = given(site, ALICE, BOB, proto=UDP)
    downloads, ours = Downloads(site, alices, bobs), site.answerers[0]
    for _ in range(50):
        ours.sendto(bytes(1_000), alices.source)
    assert downloads.state().backlog_bytes > 20_000
    site.node.run("cut", ALICE)
    before = downloads.state()
    for _ in range(5):
        with pytest.raises(PermissionError):
            ours.sendto(bytes(1_000), alices.source)
        ours.sendto(b"heard", bobs.source)
    assert downloads.state() == before and before.backlog_bytes == 0
    assert [bobs.sock.recv(10) for _ in range(5)] == 5 * [b"heard"]


def test_datagrams_to_one_address_end_and_those_to_others_do_not(site: Site) -> None:
    (here,), there = given(site, ALICE, proto=UDP), site.connect(CUSTOMERS[1], proto=UDP)
    site.node.write(there.line(ALICE))
    eventually(lambda: site.holders(there) == [ALICE])
    site.node.run("cut", ALICE, "--address", CUSTOMERS[0])
    ours = site.answerers[0]
    with pytest.raises(PermissionError):
        ours.sendto(b"lost", here.source)
    ours.sendto(b"heard", there.source)
    assert there.sock.recv(10) == b"heard"


def test_a_proxy_of_this_host_hears_of_it(site: Site) -> None:
    """One that stands before the engine, and says nothing by itself."""
    before = Connection(socket.create_connection((NODE[0], 443)), TCP, (NODE[0], 443))
    site.node.write(before.line(ALICE))
    eventually(lambda: site.holders(before) == [ALICE])
    site.node.run("cut", ALICE)
    eventually(lambda: is_reset(before), 1.0)
    before.sock.close()
