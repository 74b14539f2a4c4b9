"""Users of the real sing-box, known by the connections that it tells."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.singbox import REFUSE, binary

from .customers import CUSTOMERS, NODE
from .harness import Node, eventually
from .singbox_engine import SECRET, SOCKS_PORT, EngineSite, is_open

pytestmark = pytest.mark.skipif(
    binary() is None, reason="needs the engine of tests/lab/sing-box.txt"
)
USERS = {"alice": "a", "bob": "b"}
ALICE, BOB = "singbox:alice", "singbox:bob"


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[EngineSite]:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o640)
    made = EngineSite(
        Node(tmp_path), type="singbox", address="127.0.0.1:9091", secret_file=str(secret)
    )  # fmt: skip
    yield made
    made.close()
    made.node.stop()


def test_users_behind_one_address_by_tcp_and_by_quic(site: EngineSite) -> None:
    """The agent was there first: it has waited, and said so."""
    eventually(lambda: site.source()["waiting"], 12)
    assert "127.0.0.1:9091: sing-box's api is not there; waiting for it" in site.said()
    site.start_engine(USERS)
    eventually(lambda: not site.source()["waiting"], 40)
    alice, bob = site.socks("alice", "a"), site.socks("bob", "b")
    eventually(lambda: site.holders(alice, bob) == [ALICE, BOB])
    # Two streams of one connection, and two connections of one address.
    streams = [site.customer("a"), site.customer("b")]
    assert all(map(is_open, streams))
    eventually(lambda: site.datagram_holders() == {ALICE, BOB})
    source = site.source()
    assert source["trust"] == "told"
    eventually(lambda: site.source()["log"]["claims"] == 4, 12)
    assert "the connections of sing-box at 127.0.0.1:9091 (cannot be forged)" in site.said()


def test_what_began_while_the_agent_was_away(site: EngineSite) -> None:
    site.start_engine(USERS)
    site.node.stop()
    alice, bob = site.socks("alice", "a"), site.socks("bob", "b", CUSTOMERS[1])
    gone = site.socks("bob", "b")
    gone.reset()
    assert site.holders(alice, bob) == ["", ""]
    site.node.start()
    eventually(lambda: site.holders(alice, bob) == [ALICE, BOB])
    # Its ports are somebody else's by now; the engine tells of it as one that has ended.
    again = site.connect(ours=(NODE[0], SOCKS_PORT), port=gone.source[1])
    eventually(lambda: site.source()["log"]["claims"] >= 2, 12)
    assert site.holders(again) == [""]


def test_the_engine_restarts_and_hangs(site: EngineSite) -> None:
    site.start_engine(USERS)
    first = site.socks("alice", "a")
    eventually(lambda: site.holders(first) == [ALICE])
    site.stop_engine()
    site.start_engine(USERS)
    # Before the agent has found the engine again: it is told of all that there are.
    later = site.socks("bob", "b")
    eventually(lambda: site.holders(later) == [BOB], 40)
    assert site.node.agent is not None and site.node.agent.poll() is None


def doctors(site: EngineSite) -> list[str]:
    """What ``doctor`` says of sing-box."""
    done = subprocess.run(
        site.node.command("doctor", "--json", "--no-canary"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    findings = json.loads(done.stdout)["findings"]
    return [f["sentence"] for f in findings if f["kind"].startswith("singbox_")]


def test_a_wrong_secret_is_said_and_a_new_one_needs_no_restart(site: EngineSite) -> None:
    (said,) = doctors(site)
    assert "none of its users is limited: 127.0.0.1:9091: sing-box's api is not there" in said
    secret = site.node.directory / "secret"
    secret.write_text("another-one")
    site.start_engine(USERS)
    eventually(lambda: "refuses the secret" in site.source()["waiting"], 40)
    assert "refuses the secret of secret_file" in doctors(site)[0]
    secret.chmod(0o644)
    eventually(lambda: "everybody may read it" in site.source()["waiting"], 40)
    (said,) = doctors(site)
    assert said.startswith("127.0.0.1:9091: sing-box cannot be asked") and "chmod o=" in said
    assert "another-one" not in said
    secret.chmod(0o640)
    secret.write_text(SECRET)
    alice = site.socks("alice", "a")
    eventually(lambda: site.holders(alice) == [ALICE], 40)
    assert doctors(site) == ["sing-box at 127.0.0.1:9091 tells of connections: 1 now"]


def test_a_name_that_is_no_text_silences_the_engine_and_a_rule_prevents_it(
    site: EngineSite,
) -> None:
    """Any customer can ask for one: the engine's own encoder gives up then."""
    site.start_engine(USERS)
    site.socks("bob", "b", name=b"a\xff\xfe.example")
    eventually(lambda: "a name that is no text" in site.source()["waiting"], 40)
    site.stop_engine()
    site.start_engine(USERS, REFUSE)
    site.socks("bob", "b", name=b"a\xff\xfe.example")
    alice = site.socks("alice", "a")
    eventually(lambda: site.holders(alice) == [ALICE], 60)
    eventually(lambda: not site.source()["waiting"], 12)
