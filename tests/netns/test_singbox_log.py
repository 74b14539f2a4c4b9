"""Users of the real sing-box, known by its log, in which every customer can write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.singbox import binary

from .customers import CUSTOMERS
from .harness import Node, eventually
from .singbox_engine import EngineSite, is_open

pytestmark = pytest.mark.skipif(
    binary() is None, reason="needs the engine of tests/lab/sing-box.txt"
)
USERS = {"alice": "a", "bob": "b", "victim": "v"}
ALICE, BOB = "singbox_log:alice", "singbox_log:bob"


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[EngineSite]:
    made = EngineSite(Node(tmp_path), type="singbox_log", path=str(tmp_path / "sing-box.log"))
    yield made
    made.close()
    made.node.stop()


def test_users_by_tcp_and_by_quic_and_both_restart(site: EngineSite) -> None:
    eventually(lambda: site.source()["waiting"], 12)
    assert '"level": "info", "timestamp": true, "output": "' in site.source()["waiting"]
    site.start_engine(USERS)
    alice, bob = site.socks("alice", "a"), site.socks("bob", "b")
    eventually(lambda: site.holders(alice, bob) == [ALICE, BOB])
    streams = [site.customer("a"), site.customer("b")]
    assert all(map(is_open, streams))
    eventually(lambda: site.datagram_holders() == {ALICE, BOB})
    assert site.source()["trust"] == "text"
    # What is written while the agent is away is read afterwards.
    site.node.stop()
    late = site.socks("bob", "b", CUSTOMERS[1])
    site.node.start()
    eventually(lambda: site.holders(late) == [BOB])
    site.stop_engine()
    site.start_engine(USERS)
    again = site.socks("alice", "a")
    eventually(lambda: site.holders(again) == [ALICE])


def test_a_forger_gets_nobody_elses_class(site: EngineSite) -> None:
    """A customer has perfect lines written about a flow of their own, and about a neighbour's."""
    site.start_engine(USERS)
    victim = site.socks("victim", "v", CUSTOMERS[1])
    eventually(lambda: site.holders(victim) == ["singbox_log:victim"])
    # A flow that nobody has yet: the forger's own, silent until the line is there.
    silent = site.connect(CUSTOMERS[0], ours=("10.98.0.1", 8443))
    stamp = "+0000 2026-11-26 13:00:00 INFO [7 0ms] inbound/socks[s]: "
    for source, user in ((silent.source, "victim"), (victim.source, "bob")):
        text = (
            f"2001:db8::1]:80\n{stamp}inbound connection from {source[0]}:{source[1]}\n"
            f"{stamp}[{user}] inbound connection to a:1\n"
        )
        assert len(text) < 255
        site.socks("bob", "b", CUSTOMERS[0], name=text.encode())
    eventually(lambda: "[victim] inbound connection to a:1\n" in site.log.read_text())
    after = site.socks("alice", "a", CUSTOMERS[2])
    eventually(lambda: site.mark(after))
    assert site.holders(victim) == ["singbox_log:victim"]
    eventually(lambda: site.mark(silent))
    assert "victim" not in site.holders(silent)[0]
