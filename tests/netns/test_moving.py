"""Connections that move to other ports: followed by the kernel, by their QUIC connection ID.

Datagrams of these tests look like QUIC's: what the kernel sees of it is five bytes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from vff_qos.core.plan.desired import our_table
from vff_qos.core.plan.nft_table import normal_table
from vff_qos.core.settings import parse_settings
from vff_qos.kernel import nft

from .customers import CUSTOMERS, NODE, UDP, Connection, Site
from .harness import eventually, run

ALICE, BOB = "alice@x", "bob@x"
HOME = CUSTOMERS[0]
TARGET, HOPS = 20_000, (20_001, 20_050)


@pytest.fixture
def moving(site: Site) -> Iterator[Site]:
    """A node where ports 20001 to 20050 are port 20000."""
    site.node.stop()
    site.set(service_ports=[443], hop={f"{HOPS[0]}-{HOPS[1]}": TARGET})
    site.node.make_table()
    site.node.start()
    yield site


def short(ident: bytes) -> bytes:
    """A packet with a short header (RFC 9000, 17.3.1)."""
    return b"\x4f" + ident + os.urandom(20)


def long(ident: bytes) -> bytes:
    """One with a long header: what a connection begins with."""
    return b"\xc0\0\0\0\1\4" + ident + os.urandom(20)


def begin(site: Site, email: str, ident: bytes, address: str = HOME, port: int = 443) -> Connection:
    """A connection that is the user's, whose ID the kernel has seen."""
    made = site.connect(address, proto=UDP, ours=(NODE[0], port))
    site.node.write(made.line(email))
    eventually(lambda: site.holders(made) == [email])
    for _ in range(3):
        made.sock.send(short(ident))
    return made


def move(site: Site, packet: bytes, address: str = HOME, port: int = 443) -> Connection:
    """The next flow of a connection: only this packet has come of it."""
    with_socket = site.connect(address, proto=UDP, ours=(NODE[0], port), first=packet)
    eventually(lambda: site.knows(with_socket))
    return with_socket


def test_two_users_behind_one_address_keep_their_own_marks(moving: Site) -> None:
    begin(moving, ALICE, b"aaaa")
    begin(moving, BOB, b"bbbb")
    for port in range(HOPS[0], HOPS[0] + 20):
        assert moving.holders(
            move(moving, short(b"aaaa"), port=port), move(moving, short(b"bbbb"), port=port)
        ) == [ALICE, BOB]
    eventually(lambda: moving.status()["followed"] == 40)
    assert moving.status()["ambiguous_udp"] == 0


def test_a_long_header_is_followed_with_the_next_short_one(moving: Site) -> None:
    begin(moving, ALICE, b"aaaa")
    begin(moving, BOB, b"bbbb")
    moved = move(moving, long(b"aaaa"))
    assert moving.holders(moved) == [""]
    moved.sock.send(short(b"aaaa"))
    assert moving.holders(moved) == [ALICE]


def test_an_id_that_was_seen_once_or_elsewhere_leads_nobody_anywhere(moving: Site) -> None:
    first = begin(moving, ALICE, b"aaaa")
    begin(moving, BOB, b"bbbb")
    first.sock.send(short(b"once"))
    assert moving.holders(move(moving, short(b"once"))) == [""]
    # Who has seen an ID gains nothing by it from another address.
    assert moving.holders(move(moving, short(b"aaaa"), address=CUSTOMERS[1])) == [""]


def test_a_chain_of_hops_goes_on_with_ids_that_are_new(moving: Site) -> None:
    """QUIC takes a new ID every some thousand packets; what was followed teaches, too."""
    begin(moving, BOB, b"bbbb")
    moved = begin(moving, ALICE, b"0000")
    for number in range(1, 12):
        ident = b"%04d" % number
        for _ in range(2):
            moved.sock.send(short(ident))
        moved = move(moving, short(ident))
        assert moving.holders(moved) == [ALICE], number


def test_what_is_no_quic_fills_nothing(moving: Site) -> None:
    """Salamander: other bytes in each packet."""
    made = begin(moving, ALICE, b"aaaa")
    for _ in range(3_000):
        made.sock.send(short(os.urandom(4)))
    assert elements("quic_marks4") == 1
    assert elements("quic_once4") < 100


def test_ids_that_are_made_up_are_bounded(moving: Site) -> None:
    made = begin(moving, ALICE, b"aaaa")
    for number in range(2_000):
        for _ in range(2):
            made.sock.send(short(number.to_bytes(4, "big")))
    assert elements("quic_marks4") < 40


def elements(name: str) -> int:
    """How many elements a set or map has."""
    text = run("nft", "list", "table", "inet", "vff_qos")
    body = text.partition(f" {name} {{")[2].partition("\n\t}")[0]
    return body.count("expires")


def test_a_flow_that_is_somebody_elses_leads_the_next_to_them(moving: Site) -> None:
    """A line has corrected whose it is: what its ID stood for is forgotten."""
    made = begin(moving, ALICE, b"aaaa")
    begin(moving, BOB, b"bbbb")
    made.reset()
    again = move(moving, short(b"aaaa"), port=443)
    assert moving.holders(again) == [ALICE]
    moving.node.write(again.line(BOB))
    eventually(lambda: moving.holders(again) == [BOB])

    def follows() -> bool:
        for _ in range(2):
            again.sock.send(short(b"aaaa"))
        return moving.holders(move(moving, short(b"aaaa"))) == [BOB]

    eventually(follows)


def test_who_was_cut_off_stays_so_with_the_next_port(moving: Site) -> None:
    begin(moving, ALICE, b"aaaa")
    bobs = begin(moving, BOB, b"bbbb")
    moving.node.run("cut", ALICE)
    dropped = "counter packets"
    run("nft", "insert", "rule", "inet", "vff_qos", "cut_off", "counter")
    for port in range(HOPS[0], HOPS[0] + 5):
        moved = moving.connect(HOME, proto=UDP, ours=(NODE[0], port), first=short(b"aaaa"))
        moved.sock.send(short(b"aaaa"))
        bobs.sock.send(short(b"bbbb"))
    table = ("nft", "list", "chain", "inet", "vff_qos", "cut_off")
    eventually(lambda: f"{dropped} 10 " in run(*table))


def test_the_kill_switch_ends_it_and_redirects_all_the_same(moving: Site) -> None:
    made = begin(moving, ALICE, b"aaaa")
    moving.node.run("suspend")
    for _ in range(3):
        made.sock.send(short(b"aaaa"))
    late = move(moving, short(b"aaaa"), port=HOPS[0])
    assert moving.holders(made, late) == ["", ""]
    assert elements("quic_marks4") == 0
    # The service's socket has it.
    assert served(moving, HOPS[0])


def served(site: Site, port: int) -> bool:
    """Whether what is sent to a port reaches the engine's socket."""
    with socket.socket(type=socket.SOCK_DGRAM) as engine:
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        engine.bind((NODE[0], TARGET))
        engine.settimeout(2)
        sent = site.connect(HOME, proto=UDP, ours=(NODE[0], port), first=b"to whom?")
        return engine.recvfrom(100) == (b"to whom?", sent.source)


def test_all_ports_of_a_range_are_one_and_others_are_not(moving: Site) -> None:
    assert served(moving, HOPS[0])
    assert served(moving, HOPS[1])
    with pytest.raises(TimeoutError):
        served(moving, HOPS[1] + 1)


def test_without_an_id_the_only_user_of_an_address_is_followed_for_long(moving: Site) -> None:
    """Salamander: every hop is another port of the range, and the first flow has long ended."""
    made = moving.connect(HOME, proto=UDP, ours=(NODE[0], HOPS[0]))
    moving.node.write(made.line(ALICE))
    eventually(lambda: moving.holders(made) == [ALICE])
    for port in range(HOPS[0] + 1, HOPS[0] + 9):
        moved = moving.connect(HOME, proto=UDP, ours=(NODE[0], port), first=os.urandom(40))
        eventually(lambda m=moved: moving.holders(m) == [ALICE])
        run("conntrack", "-D", "-p", "udp", "--orig-port-dst", str(port - 1))
        time.sleep(0.05)
    assert moving.status()["followed"] == 0


def test_the_table_is_listed_as_it_was_made(moving: Site) -> None:
    """Or each look would make it anew; and a ruleset that was saved can be loaded."""
    text = (moving.node.directory / "settings.yml").read_bytes()
    wanted = our_table(parse_settings(text, "")).objects
    have = nft.read_table()
    assert have is not None and normal_table(have.objects) == wanted
    saved = run("nft", "-s", "list", "table", "inet", "vff_qos")
    run("nft", "delete", "table", "inet", "vff_qos")
    run("nft", "-f", "-", stdin=saved)
    assert run("nft", "-s", "list", "table", "inet", "vff_qos") == saved
