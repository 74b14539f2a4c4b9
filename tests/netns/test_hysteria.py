"""Hysteria 2 asks the hooks, and so each of its users has their own limit: with the real engine."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .harness import Node, eventually, run
from .hysteria_node import STATS_PORT, STATS_SECRET, HysteriaSite, Panel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hysteria2") is None or platform.machine() != "x86_64",
    reason="needs the engine of tests/lab/hysteria.txt",
)
ALICE, BOB = "alice@x", "bob@x"


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[HysteriaSite]:
    made = HysteriaSite(
        Node(tmp_path), hysteria_stats_url=f"http://127.0.0.1:{STATS_PORT}",
        hysteria_stats_secret=STATS_SECRET,
    )  # fmt: skip
    digest = hashlib.sha256(b"bobs-secret").hexdigest()
    made.hooks.write_users({ALICE: "alices-secret", BOB: f"sha256${digest}"})
    yield made
    made.close()


def test_two_users_behind_one_address_have_their_own_limits(site: HysteriaSite) -> None:
    site.hooks.start()
    site.serve()
    alice, bob = site.customer("alices-secret"), site.customer(f"{BOB}:bobs-secret")
    eventually(lambda: alice.is_in and bob.is_in, 20)
    # The login's answer comes after the mark: what a user sends first is limited.  But it waits no
    # longer than a customer would, whatever the agent does meanwhile.
    assert site.users_of() == [ALICE, BOB] or site.hooks.has_said("the agent does not answer")
    eventually(lambda: site.users_of() == [ALICE, BOB])
    assert alice.echo()
    assert bob.echo()
    marks = set(site.udp_flows().values())
    ups, downs = site.node.classes()
    found = sorted((ups[mark & 0xFFFF], downs[mark & 0xFFFF]) for mark in marks)
    assert found == [(2_000_000, 3_000_000), (5_000_000, 10_000_000)]


def test_wrong_secrets_are_refused(site: HysteriaSite) -> None:
    site.hooks.start()
    site.serve()
    mallory = site.customer(f"{ALICE}:bobs-secret")
    eventually(lambda: mallory.is_refused, 20)
    assert not mallory.is_in
    assert site.users_of() in ([], [""])
    assert site.hooks.status()["refused"] >= 1


def test_ports_of_a_range_that_are_redirected(site: HysteriaSite) -> None:
    """Port hopping: the client's first port is any of the range, the engine has one."""
    run(
        "nft", "-f", "-",
        stdin="table ip hops { chain in { type nat hook prerouting priority -100; "
        "udp dport 20001-20100 redirect to :20000; }; }",
    )  # fmt: skip
    site.hooks.start()
    site.serve()
    alice = site.customer("alices-secret", ports="20001-20100")
    eventually(lambda: alice.is_in, 20)
    eventually(lambda: site.users_of() == [ALICE])
    assert alice.echo()


def test_restarts_of_the_agent_and_of_the_hooks(site: HysteriaSite) -> None:
    site.hooks.start()
    site.serve()
    alice = site.customer("alices-secret")
    eventually(lambda: alice.is_in, 20)
    # The agent away keeps nobody out, and learns of them when it is back.
    site.node.stop()
    bob = site.customer("bobs-secret")
    eventually(lambda: bob.is_in, 20)
    assert bob.echo()
    eventually(lambda: site.hooks.has_said("the agent does not answer"))
    assert site.users_of() == ["", ALICE]
    site.node.start()
    eventually(lambda: site.users_of() == [ALICE, BOB])
    eventually(lambda: site.hooks.has_said("the agent answers"))
    # The hooks away end nobody's connection.
    site.hooks.stop()
    assert alice.echo()
    site.hooks.start()
    carol = site.customer("alices-secret")
    eventually(lambda: carol.is_in, 20)
    eventually(lambda: site.users_of() == [ALICE, ALICE, BOB])


def test_whoever_is_cut_off_is_kicked_and_kept_out(site: HysteriaSite) -> None:
    site.hooks.start()
    server = site.serve()
    alice, bob = site.customer("alices-secret"), site.customer("bobs-secret")
    eventually(lambda: alice.is_in and bob.is_in, 20)
    assert "cut off" in site.node.run("cut", ALICE)
    # If the engine says anything to her before the kick comes, it has ended the connection itself.
    eventually(
        lambda: site.hooks.status()["kicked"] or server.has_said("client disconnected"), 30.0
    )
    eventually(lambda: site.hooks.login("alices-secret")[1]["ok"] is False)
    assert not alice.echo(within_s=2)
    assert bob.echo()
    site.node.run("reset", ALICE)
    eventually(lambda: site.hooks.login("alices-secret")[1] == {"ok": True, "id": ALICE})


def test_a_busy_connection_of_who_is_cut_off_ends_in_the_engine(
    tmp_path: Path, trees: tuple[str, str]
) -> None:
    """Without a kick: it hears (EPERM) that nobody takes what it sends.  No neighbour does."""
    site = HysteriaSite(Node(tmp_path))
    site.hooks.write_users({ALICE: "alices-secret", BOB: "bobs-secret"})
    try:
        site.hooks.start()
        server = site.serve()
        alice, bob = site.customer("alices-secret"), site.customer("bobs-secret")
        eventually(lambda: alice.is_in and bob.is_in, 20)
        moved: list[int] = []
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(alice.keep_busy, moved)
            eventually(lambda: sum(moved) > 1_000_000 or busy.done())
            assert not busy.done()
            site.node.run("cut", ALICE)
            eventually(lambda: server.has_said("client disconnected"))
            busy.result()
        assert bob.echo()
    finally:
        site.close()


def test_the_panel_decides_and_its_absence_lets_nobody_new_in(
    tmp_path: Path, trees: tuple[str, str]
) -> None:
    panel = Panel()
    panel.users["tok-1"] = ALICE
    site = HysteriaSite(
        Node(tmp_path), users_file="", auth_url=f"http://127.0.0.1:{panel.port}/auth?node=1"
    )
    try:
        site.hooks.start()
        site.serve()
        alice = site.customer("tok-1")
        eventually(lambda: alice.is_in, 20)
        eventually(lambda: site.users_of() == [ALICE])
        panel.stop()
        again, bob = site.customer("tok-1"), site.customer("tok-2")
        eventually(lambda: again.is_in and bob.is_refused, 20)
        # The refused one's flow was handed on in advance to the only user of that address.
        assert BOB not in site.users_of()
    finally:
        panel.stop()
        site.close()
