"""Users who are cut off: real flows, real sockets, the real table."""

from __future__ import annotations

import socket

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.sockets import end_connections

from .customers import CUSTOMERS, NODE, TCP, UDP, Connection, Site, is_reset, lives
from .harness import cut_marks, eventually, run

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
