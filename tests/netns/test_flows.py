"""The socket for flows: whoever knows whose a flow is says so, and the kernel has it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .customers import CUSTOMERS, NODE, TCP, UDP, Site
from .harness import Node, eventually, run

ALICE, BOB = "alice@x", "bob@x"


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Site]:
    node = Node(tmp_path)
    made = Site(node)
    made.told()
    made.set(service_ports=[443, 8443, "20000-20100"])
    node.start()
    yield made
    node.stop()
    made.close()


def post(site: Site, *claims: dict[str, str]) -> tuple[int, str]:
    """Status and body of the answer."""
    client = http.client.HTTPConnection("localhost", timeout=5)
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(5)
    client.sock.connect(str(site.node.directory / "flows"))
    client.request("POST", "/v1/flows", json.dumps(claims))
    response = client.getresponse()
    found = response.status, response.read().decode()
    client.close()
    return found


def claim(user: str, source: tuple[str, int], proto: int = UDP, **more: str) -> dict[str, str]:
    names = {TCP: "tcp", UDP: "udp"}
    return {"user": user, "source": f"{source[0]}:{source[1]}", "protocol": names[proto], **more}


def test_two_users_behind_one_address_have_their_own_marks(site: Site) -> None:
    alices = [site.connect(proto=UDP), site.connect(proto=TCP)]
    bobs = site.connect(proto=UDP)
    assert post(
        site, claim(ALICE, alices[0].source), claim(ALICE, alices[1].source, TCP),
        claim(BOB, bobs.source),
    ) == (204, "")  # fmt: skip
    eventually(lambda: site.holders(*alices, bobs) == [ALICE, ALICE, BOB])
    assert site.limits(alices[0]) == (5_000_000, 10_000_000)


def test_a_word_means_a_flow_of_its_own_protocol(site: Site) -> None:
    """One client's port, TCP and UDP, to one port of ours: two engines, two users."""
    tcp = site.connect(port=40_000, proto=TCP)
    udp = site.connect(port=40_000, proto=UDP)
    post(site, claim(BOB, udp.source), claim(ALICE, tcp.source, TCP))
    eventually(lambda: site.holders(tcp, udp) == [ALICE, BOB])
    # Again, as after a reconnection of the hook: still each its own.
    post(site, claim(ALICE, tcp.source, TCP), claim(BOB, udp.source))
    assert site.holders(tcp, udp) == [ALICE, BOB]


def test_a_word_may_come_before_the_first_packet(site: Site) -> None:
    post(site, claim(ALICE, (CUSTOMERS[0], 41_000)), claim(BOB, (CUSTOMERS[0], 41_001), TCP))
    # The protocol that was said, and no other.
    other = site.connect(port=41_000, proto=TCP)
    alices = site.connect(port=41_000, proto=UDP)
    bobs = site.connect(port=41_001, proto=TCP)
    eventually(lambda: site.holders(other, alices, bobs) == ["", ALICE, BOB])


def test_a_word_in_advance_gives_way_to_one_on_the_flow(site: Site) -> None:
    post(site, claim(ALICE, (CUSTOMERS[0], 41_000)))
    flow = site.connect(port=41_000, proto=UDP)
    eventually(lambda: site.holders(flow) == [ALICE])
    post(site, claim(BOB, flow.source))
    eventually(lambda: site.holders(flow) == [BOB])


def test_a_word_for_another_of_our_ends_waits_for_its_own_flow(site: Site) -> None:
    """Two users behind one translated end; each word comes before its packet."""
    bobs = site.connect(port=43_000)
    post(site, claim(BOB, bobs.source, TCP, local=f"{NODE[0]}:443"))
    eventually(lambda: site.holders(bobs) == [BOB])
    post(site, claim(ALICE, bobs.source, TCP, local=f"{NODE[0]}:8443"))
    alices = site.connect(port=43_000, ours=(NODE[0], 8443))
    eventually(lambda: site.holders(alices, bobs) == [ALICE, BOB])


def test_a_word_that_may_have_met_anothers_flow_waits_on_for_its_own(site: Site) -> None:
    """Nothing is known yet: the port that the packet went to may be redirected to the other."""
    post(site, claim(ALICE, (CUSTOMERS[0], 43_001), TCP, local=f"{NODE[0]}:8443"))
    bobs = site.connect(port=43_001)
    eventually(lambda: site.holders(bobs) == [ALICE])
    post(site, claim(BOB, bobs.source, TCP, local=f"{NODE[0]}:443"))
    alices = site.connect(port=43_001, ours=(NODE[0], 8443))
    eventually(lambda: site.holders(alices, bobs) == [ALICE, BOB])


def test_a_word_on_a_flow_that_has_just_ended_waits_for_none(site: Site) -> None:
    """Whoever has the tuple next is not who is meant."""
    first = site.connect(port=42_000)
    post(site, claim(ALICE, first.source, TCP))
    eventually(lambda: site.holders(first) == [ALICE])
    first.reset()
    eventually(lambda: site.mark(first) == 0, 15)
    post(site, claim(ALICE, first.source, TCP))
    again, other = site.connect(port=42_000), site.connect()
    post(site, claim(BOB, other.source, TCP))
    eventually(lambda: site.holders(again, other) == ["", BOB])


def test_behind_a_redirect_of_a_range_the_flow_is_found(site: Site) -> None:
    """Hysteria's port hopping: the engine does not know which port was asked for."""
    run(
        "nft", "-f", "-",
        stdin="table ip hops { chain in { type nat hook prerouting priority -100; "
        "udp dport 20000-20100 redirect to :443; }; }",
    )  # fmt: skip
    flow = site.connect(ours=(NODE[0], 20_050), proto=UDP)
    post(site, claim(ALICE, flow.source, local=f"{NODE[0]}:443"))
    eventually(lambda: site.holders(flow) == [ALICE])
    without = site.connect(ours=(NODE[0], 20_051), proto=UDP)
    post(site, claim(BOB, without.source))
    eventually(lambda: site.holders(without) == [BOB])


def test_a_datagram_to_another_port_does_not_take_a_word_away(site: Site) -> None:
    """The engine in a container listens on 443, published as 8443; 443 is another source's."""
    site.node.stop()
    listen = f"unix:{site.node.directory / 'flows'}"
    site.set(sources=[{"type": "flows", "listen": listen, "ports": [8443]}])
    site.node.start()
    for proto, port in ((TCP, 44_000), (UDP, 44_001)):
        flow = site.connect(port=port, ours=(NODE[0], 8443), proto=proto)
        junk = site.connect(port=port, ours=(NODE[0], 443), proto=proto)
        post(site, claim(ALICE, flow.source, proto, local="172.18.0.2:443"))
        eventually(lambda: site.holders(flow, junk) == [ALICE, ""])  # noqa: B023


def test_a_restart_keeps_the_marks_and_takes_new_words(site: Site) -> None:
    kept = site.connect(proto=UDP)
    post(site, claim(ALICE, kept.source))
    eventually(lambda: site.holders(kept) == [ALICE])
    site.node.stop()
    site.node.start()
    late = site.connect(proto=UDP)
    post(site, claim(BOB, late.source))
    eventually(lambda: site.holders(kept, late) == [ALICE, BOB])


def test_what_is_wrong_changes_nothing(site: Site) -> None:
    flow = site.connect(proto=UDP)
    code, text = post(site, claim(ALICE, flow.source), claim("", flow.source))
    assert (code, json.loads(text)["error"][:8]) == (400, "[1]user:")
    assert site.holders(flow) == [""]


def test_words_without_a_flow_are_counted_in_the_end(site: Site) -> None:
    """Or nobody would see that the service ports are not the engine's."""
    post(site, claim(ALICE, (CUSTOMERS[0], 43_000)))
    eventually(lambda: site.status().get("no_flow") == 1, 40)


def test_names_are_others_than_those_of_a_log(site: Site) -> None:
    site.set(same_names=False)
    site.node.stop()
    site.node.start()
    alice = site.connect(proto=UDP)
    assert post(site, claim(ALICE, alice.source)) == (204, "")
    eventually(lambda: site.holders(alice) == [f"flows:{ALICE}"])
