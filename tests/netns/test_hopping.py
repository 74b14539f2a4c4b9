"""Hysteria 2 hops among ports, with the real engine and its real clients."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.singbox import binary
from vff_qos.core.flow import Flow
from vff_qos.core.htb import PROVISIONAL

from .harness import Node, eventually
from .singbox_node import HoppingSite

pytestmark = pytest.mark.skipif(
    binary() is None, reason="needs the engine of tests/lab/sing-box.txt"
)
ALICE, BOB = "alice@x", "bob@x"
#: A hop takes five seconds: twenty are for whoever measures.
HOP_COUNT = int(os.environ.get("VFF_QOS_HOPS", "4"))
NewSite = Callable[..., HoppingSite]


@pytest.fixture
def new_site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[NewSite]:
    made: list[HoppingSite] = []

    def new(**options: str) -> HoppingSite:
        made.append(HoppingSite(Node(tmp_path), **options))
        return made[-1]

    yield new
    for site in made:
        site.close()
        site.node.stop()


def talk(*streams: socket.socket) -> None:
    """A little each way, in order: a stream that has lost its tunnel ends the test."""
    for stream in streams:
        stream.sendall(b"x")
    for stream in streams:
        assert stream.recv(1) == b"x"


def confirmed(site: HoppingSite) -> set[int]:
    """Marks that a word has given: not by address, in advance."""
    return {mark for mark in site.flows().values() if mark and not mark & PROVISIONAL}


def watch(
    site: HoppingSite, streams: list[socket.socket], moves: int, move: Callable[[], None]
) -> float:
    """Talk until so many further flows of each have come, ``move`` brings about the next ones;
    returns for how long one was nobody's at most."""
    known, first_s, longest_s = set(site.flows()), dict[Flow, float](), 0.0
    while len(first_s) < moves * len(streams):
        move()
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            talk(*streams)
            now = time.monotonic()
            for flow, mark in site.flows().items():
                if flow in known:
                    continue
                since = first_s.setdefault(flow, now)
                if mark == 0:
                    longest_s = max(longest_s, time.monotonic() - since)
    return longest_s


def check(site: HoppingSite, longest_s: float) -> None:
    """Every flow is one of the two users', and none was nobody's for long."""
    print(f"nobody's for {longest_s * 1000:.0f} ms at most")
    # Seen by polling, on any machine; most flows have their mark from the first packet.
    assert longest_s < 1.0
    eventually(lambda: 0 not in site.flows().values())
    assert len(set(site.flows().values())) == 2


def begin(new_site: NewSite, **options: str) -> tuple[HoppingSite, list[socket.socket]]:
    site = new_site(**options)
    site.serve(**{ALICE: "a", BOB: "b"})
    streams = [site.customer("a"), site.customer("b")]
    talk(*streams)
    eventually(lambda: len(confirmed(site)) == 2, 20)
    for _ in range(5):
        talk(*streams)  # an ID is learned when it is seen twice
    return site, streams


def test_two_users_behind_one_address_hop(new_site: NewSite) -> None:
    """The engine's clients do so every five seconds and not sooner."""
    site, streams = begin(new_site)
    check(site, watch(site, streams, HOP_COUNT, lambda: None))
    eventually(lambda: site.count("followed") >= 2 * HOP_COUNT)
    assert site.count("ambiguous_udp") == 0


def test_their_nat_forgets_both_twenty_times(new_site: NewSite) -> None:
    """Each time their datagrams come from other ports."""
    site, streams = begin(new_site)
    site.translate()
    check(site, watch(site, streams, 20, site.forget_translations))
    eventually(lambda: site.count("followed") >= 40)


def test_salamander_hides_the_id_and_the_address_decides_for_one(new_site: NewSite) -> None:
    site = new_site(obfs="pepper")
    site.serve(**{ALICE: "a"})
    streams = [site.customer("a")]
    talk(*streams)
    eventually(lambda: confirmed(site), 20)
    site.translate()
    longest_s = watch(site, streams, 20, site.forget_translations)
    print(f"nobody's for {longest_s * 1000:.0f} ms at most")
    assert longest_s < 1.0
    eventually(lambda: site.count("handed_on") >= 20)
    assert site.count("followed") == 0


def test_salamander_of_two_is_restricted_where_that_is_wanted(new_site: NewSite) -> None:
    site = new_site(obfs="pepper", unknown_udp="restrict")
    site.serve(**{ALICE: "a", BOB: "b"})
    streams = [site.customer("a"), site.customer("b")]
    talk(*streams)
    eventually(lambda: len(confirmed(site)) == 2, 20)
    users = set(site.flows().values())
    site.translate()
    site.forget_translations()
    talk(*streams)

    def all_restricted() -> bool:
        talk(*streams)
        marks = set(site.flows().values()) - users
        return len(marks) == 1 and 0 not in marks

    eventually(all_restricted)
    eventually(lambda: site.count("ambiguous_udp") >= 2)
