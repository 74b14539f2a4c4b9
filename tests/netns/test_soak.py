"""Everything at once: rotations, restarts, kill -9, flushes and forged lines against live flows.

60 seconds in `make test`, ten minutes in `make soak` (VFF_QOS_SOAK_S). At the end each live flow's
mark is compared with the truth.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.state import State

from .harness import Client, Node, run
from .hostile import FORMATS

SECONDS = float(os.environ.get("VFF_QOS_SOAK_S", "60"))
MAX_FLOWS = 300
#: More than a stranger's text can taint.
HARMLESS = (
    b"2026/11/20 15:48:00.000001 from 1.2.3.4:5 rejected  proxy/trojan: not a valid user\n" * 40
)


class World:
    """Live clients, each with its true user."""

    def __init__(self, node: Node, source: random.Random) -> None:
        self.node, self.source = node, source
        self.truth: dict[Client, str] = {}
        self.rotations = 0

    def connect(self) -> None:
        """A new flow and its line, sometimes written in two pieces."""
        client = Client(self.source.choice(["127.0.0.1", "::1"]), 4430)
        self.truth[client] = f"user{self.source.randrange(40)}@x"
        line = client.line(self.truth[client], self.source.choice(["", "tcp:"]))
        cut = self.source.randrange(len(line))
        self.node.write(line[:cut])
        self.node.write(line[cut:])

    def disconnect(self) -> None:
        """Some flows end."""
        for client in self.source.sample(list(self.truth), min(5, len(self.truth))):
            del self.truth[client]
            client.sock.close()

    def forge(self) -> None:
        """A stranger names live flows; the engine goes on with other lines."""
        for client in self.source.sample(list(self.truth), min(5, len(self.truth))):
            forged = client.line("attacker@x")
            self.node.write(FORMATS["trojan"][1] % (b"192.0.2.1:1", b"a\n" + forged), b"tail\n")
        self.node.write(HARMLESS)

    def rotate(self) -> None:
        """Rename and create, with a late line into the old file."""
        self.rotations += 1
        with self.node.log.open("ab") as old:
            self.node.log.rename(self.node.log.with_suffix(f".log.{self.rotations}"))
            client = Client("127.0.0.1", 4430)
            self.truth[client] = "late@x"
            old.write(client.line("late@x"))
        self.node.log.touch()

    def truncate(self) -> None:
        """copytruncate; what is written between copy and truncation is lost by design."""
        self.settle()
        os.truncate(self.node.log, 0)
        time.sleep(1.1)

    def restart(self) -> None:
        self.node.stop()
        self.connect()
        self.node.start()

    def kill(self) -> None:
        self.node.stop(signal.SIGKILL)
        self.connect()
        self.node.start()

    def flush(self) -> None:
        """Somebody flushes conntrack; the flows go on."""
        self.settle()
        run("conntrack", "-F")
        for client in self.truth:
            client.sock.send(b"x")
        self.settle()

    def collect(self) -> None:
        self.node.run("gc")

    def change_policy(self) -> None:
        rate = self.source.randrange(1, 90)
        self.node.write_policy(f"users:\n  user1@x: {{upload: {rate}mbit}}\n")

    def settle(self) -> None:
        """Every live flow is marked."""
        deadline = time.monotonic() + 15
        while missing := [client for client in self.truth if not self.node.mark(client)]:
            told = [(str(c.flow), self.truth[c], self.node.mark(c)) for c in missing[:5]]
            assert time.monotonic() < deadline, (len(missing), len(self.truth), told)
            time.sleep(0.02)

    def wrong(self) -> list[str]:
        """Live flows whose mark is not their user's."""
        minors = {o.minor: o.key for o in State(str(self.node.directory / "state")).owners()}
        marks = self.node.conntrack.get_marks([prepare(client.flow) for client in self.truth])
        return [
            f"{client.flow}: {minors.get((mark or 0) & 0xFFFF)!r}, but it is {email}"
            for (client, email), mark in zip(self.truth.items(), marks, strict=True)
            if minors.get((mark or 0) & 0xFFFF) != email
        ]


@pytest.mark.timeout(int(SECONDS) + 300)
def test_no_flow_ends_with_a_wrong_mark(node: Node) -> None:
    source = random.Random(4)
    world = World(node, source)
    node.start()
    rare = [world.truncate, world.restart, world.kill, world.flush, world.change_policy]
    often = [world.disconnect, world.forge, world.rotate, world.collect]
    deadline = time.monotonic() + SECONDS
    done: dict[str, int] = {}
    while time.monotonic() < deadline:
        if len(world.truth) < MAX_FLOWS:
            for _ in range(source.randrange(12)):
                world.connect()
        act = source.choice(rare if source.random() < 0.15 else often)
        act()
        done[act.__name__] = done.get(act.__name__, 0) + 1
        time.sleep(source.random() * 0.2)
    world.settle()
    assert world.wrong() == [], done
    assert len(done) >= 8, done
    print(f"soak: {len(world.truth)} live flows right after {done}")
