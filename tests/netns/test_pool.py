"""Classes made in advance, in a real kernel: for newcomers, and for everybody after a reboot."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.owners import PARKED, SPARE, Owner
from vff_qos.kernel.packed.tc import Tc
from vff_qos.state import State

from .harness import MAJOR, Client, Node, eventually, look, run

POOL = 20


class PoolNode(Node):
    """A node that keeps some classes in advance."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        path = directory / "settings.yml"
        text = path.read_text().replace(
            "gc_pool_min: 0\ngc_pool_max: 4", f"gc_pool_min: {POOL}\ngc_pool_max: 30"
        )
        path.write_text(text.replace("gc_idle_sec: 3600", "gc_idle_sec: 1"))
        self.state = State(str(directory / "state"))

    def spares(self) -> set[int]:
        """Minors that the state has as spare."""
        return {owner.minor for owner in self.state.owners() if owner.key.startswith(SPARE)}

    def parked(self) -> set[int]:
        """Minors whose classes bear the priority of parked ones, on both devices."""
        tc = Tc()
        up, down = (
            {m for m, p in tc.params(socket.if_nametoindex(dev), MAJOR).items() if p.prio}
            for dev in ("vffqos0", "wan0")
        )
        tc.close()
        return up & down

    def wait_for_the_pool(self) -> None:
        eventually(lambda: len(self.parked()) == len(self.spares()) == POOL, 10)


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[PoolNode]:
    made = PoolNode(tmp_path)
    yield made
    made.stop()


def test_newcomers_get_classes_that_were_made_in_advance(node: PoolNode) -> None:
    node.start()
    node.wait_for_the_pool()
    spare = node.spares()
    clients = [Client("127.0.0.1", 4430) for _ in range(8)]
    names = ["alice@x", *(f"new{number}@x" for number in range(7))]
    node.write(*(client.line(name) for client, name in zip(clients, names, strict=True)))
    eventually(lambda: all(node.mark(client) for client in clients))
    minors = [(node.mark(client) or 0) & 0xFFFF for client in clients]
    assert len(set(minors)) == 8
    assert set(minors) <= spare
    up, down = node.classes()
    assert (up[minors[0]], down[minors[0]]) == (5_000_000, 10_000_000)
    assert (up[minors[1]], down[minors[1]]) == (2_000_000, 3_000_000)
    assert not node.parked() & set(minors)
    # Their places are filled again, and nobody sees spare classes as users.
    node.wait_for_the_pool()
    assert not node.spares() & set(minors)
    text = look(node)[1]
    assert f"0 classes parked, {POOL} made in advance" in text
    assert [line.split()[0] for line in text.splitlines() if "@x" in line] == sorted(names)
    assert "spare" not in text


def test_the_pool_survives_restarts_and_the_collector(node: PoolNode) -> None:
    node.start()
    node.wait_for_the_pool()
    spare = node.spares()
    node.stop()
    node.start()
    node.run("gc")
    time.sleep(1.5)
    assert node.spares() == node.parked() == spare
    assert not [owner for owner in node.state.owners() if owner.key.startswith("\x02")]


def test_after_a_reboot_all_users_have_their_classes_back_without_a_line(node: PoolNode) -> None:
    owners = [Owner(f"u{n}@x", 100 + n, since=1.0, moved=float(n)) for n in range(300)]
    owners += [Owner("alice@x", 50, since=1.0, moved=2.0)]
    owners += [Owner("was parked@x", 60, PARKED, since=1.0, moved=2.0)]
    node.state.save_owners(owners)
    node.start()
    eventually(lambda: len(node.classes()[0]) == len(node.classes()[1]) == 2 + 301 + POOL, 10)
    up, down = node.classes()
    assert all((up[100 + n], down[100 + n]) == (2_000_000, 3_000_000) for n in range(300))
    assert (up[50], down[50]) == (5_000_000, 10_000_000)
    # Who was parked counts as part of the pool, and gets the old minor when they return.
    assert node.parked() == node.spares() | {60}
    client = Client("127.0.0.1", 4430)
    node.write(client.line("was parked@x"))
    eventually(lambda: node.mark(client) == 0x5100003C)


def test_a_tree_that_somebody_deleted_has_the_classes_back(node: PoolNode) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    node.wait_for_the_pool()
    minor = (node.mark(client) or 0) & 0xFFFF
    for spare in node.spares():
        run("tc", "class", "del", "dev", "wan0", "classid", f"5100:{spare:x}")
    node.stop()
    node.start()
    node.wait_for_the_pool()
    assert (node.classes()[0][minor], node.classes()[1][minor]) == (5_000_000, 10_000_000)
