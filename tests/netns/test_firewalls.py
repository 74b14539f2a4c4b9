"""The real ufw and firewalld beside ours: their rules and reloads, in a network namespace.

They write below /etc, and firewalld wants a bus: so they run where `tests/releases.py` has made a
tree for them, and nowhere else.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Client, run
from .healing import HealingNode, plan_without_filters
from .neighbours import answers, others

pytestmark = pytest.mark.skipif(
    not Path("/usr/sbin/ufw").exists(), reason="runs in the trees of tests/releases.py"
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealingNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path)
    yield made
    made.stop()


def check(node: HealingNode) -> None:
    """All of ours is whole, and packets of old and new connections leave in their class."""
    node.wait(node.is_whole)
    bob = Client("127.0.0.1", 4430)
    node.write(bob.line("bob@x"))
    node.wait(lambda: node.mark(bob))
    for client in (node.client, bob):
        assert answers(node, client) > 0
    assert node.run("bootstrap", "--plan") == "no change\n"


def test_ufw(node: HealingNode) -> None:
    mark = node.mark(node.client)
    run("ufw", "allow", "4430/tcp")
    for act in ("enable", "reload", "disable", "enable"):
        run("ufw", "--force", act)
        check(node)
        assert node.mark(node.client) == mark
    theirs = others()
    assert "ufw-before-input" in theirs
    node.stop_calmly()
    node.run("remove")
    assert others() == theirs


@pytest.fixture
def firewalld() -> Iterator[None]:
    bus = subprocess.Popen(["dbus-daemon", "--system", "--nofork", "--nopidfile"])
    daemon = subprocess.Popen(["firewalld", "--nofork", "--nopid"])
    try:
        subprocess.run(
            ["sh", "-c", "until firewall-cmd --state; do sleep 0.2; done"], check=True, timeout=60
        )
        yield
    finally:
        for process in (daemon, bus):
            process.terminate()
            process.wait()


def test_firewalld(node: HealingNode, firewalld: None) -> None:
    check(node)
    mark = node.mark(node.client)
    for words in (
        ("--permanent", "--add-port", "4430/tcp"),
        ("--reload",),
        ("--add-masquerade",),
        ("--complete-reload",),
    ):
        run("firewall-cmd", "-q", *words)
        check(node)
        if words != ("--complete-reload",):  # which forgets all connections
            assert node.mark(node.client) == mark
    theirs = others()
    assert "table inet firewalld" in theirs
    node.stop_calmly()
    node.run("remove")
    assert others() == theirs
