"""systemd-networkd that owns the qdisc of the WAN device, in a network namespace.

It wants directories of its own below /etc and /run: so it runs where `tests/releases.py` has made a
tree for it, and nowhere else.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import look, root_of, run
from .healing import HealingNode, plan_without_filters

NETWORKD = Path("/usr/lib/systemd/systemd-networkd")
pytestmark = pytest.mark.skipif(
    not (NETWORKD.exists() and Path("/usr/sbin/ufw").exists()),
    reason="runs in the trees of tests/releases.py",
)
#: The addresses that the node has; and a queue that this kernel has.
NETWORK = """
[Match]
Name=wan0
[Network]
Address=10.9.0.1/24
Gateway=10.9.0.2
LinkLocalAddressing=no
[PFIFO]
Parent=root
PacketLimit=77
"""


class Networkd:
    """The daemon, which configures its links when it starts."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.stop()
        self.process = subprocess.Popen([str(NETWORKD)])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


@pytest.fixture
def networkd() -> Iterator[Networkd]:
    for name in ("", "links", "leases", "lldp"):  # which its unit makes for it
        made_for_it = Path("/run/systemd/netif", name)
        made_for_it.mkdir(parents=True, exist_ok=True)
        shutil.chown(made_for_it, "systemd-network", "systemd-network")
    directory = Path("/etc/systemd/network")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "50-wan0.network").write_text(NETWORK)
    made = Networkd()
    yield made
    made.stop()
    (directory / "50-wan0.network").unlink()


def restart(node: HealingNode, networkd: Networkd) -> None:
    """Have it put its qdisc to the root once more."""
    networkd.start()
    node.wait(lambda: "limit 77p" in run("tc", "qdisc", "show", "dev", "wan0"))


def test_without_consent_ours_stays_away_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networkd: Networkd
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = HealingNode(tmp_path)
    try:
        restart(node, networkd)
        node.hears("repair failed")
        node.wait(lambda: "take_foreign_root" in look(node)[1])
        assert look(node)[0] == 2
        assert root_of("wan0").startswith("pfifo ")
    finally:
        node.stop()


def test_with_consent_limits_are_back_after_each_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networkd: Networkd
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = HealingNode(tmp_path, "take_foreign_root: true\n")
    try:
        mark = node.mark(node.client)
        for _ in range(2):
            networkd.start()
            node.hears("healed")
            node.wait(node.is_whole)
            assert node.mark(node.client) == mark
        networkd.stop()
        node.stop()
        node.run("remove")
        assert root_of("wan0").startswith("pfifo ")
    finally:
        node.stop()
