"""Everything at once: rotations, restarts, kill -9, flushes, forged lines, ports that are used
again, clients that move, floods and overflows against live flows.

60 seconds in `make test`, ten minutes in `make soak` (VFF_QOS_SOAK_S). At the end each live flow's
mark is compared with the truth.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import time

import pytest

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.state import State

from .entries import begin
from .harness import Client, Node, eventually, run, status
from .hostile import FORMATS, STAMP

SECONDS = float(os.environ.get("VFF_QOS_SOAK_S", "60"))
MAX_FLOWS = 300
#: More than a stranger's text can taint.
HARMLESS = STAMP + b" from 1.2.3.4:5 rejected  proxy/trojan: not a valid user\n"


#: Who moves lives alone at an address.
MOVERS = [f"127.0.0.{number}" for number in range(20, 25)]
_RESET = struct.pack("ii", 1, 0)


def stamped(line: bytes) -> bytes:
    """The same, written now."""
    return line.replace(STAMP, time.strftime("%Y/%m/%d %H:%M:%S.000001").encode(), 1)


class Reborn(Client):
    """A connection from where another one has just ended."""

    def __init__(self, former: Client) -> None:
        former.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        former.sock.close()
        self.__dict__.update(former.__dict__)
        family = socket.AF_INET6 if ":" in former.address else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((former.address, former.port))
        self.sock.connect((former.address, former.flow.dport))


class Mover(Client):
    """A UDP client's latest port."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.bind((address, 0))
        self.sock.connect(("127.0.0.1", 4430))
        self.sock.send(b"x")
        self.address, self.port = self.sock.getsockname()
        self.text = address
        ends = socket.inet_aton(address), self.port, socket.inet_aton("127.0.0.1"), 4430
        self.flow = Flow(17, *ends)


class World:
    """Live clients, each with its true user."""

    def __init__(self, node: Node, source: random.Random) -> None:
        self.node, self.source = node, source
        self.truth: dict[Client, str] = {}
        self.rotations = 0
        self.movers: dict[str, Mover] = {}
        self.answerer = socket.socket(type=socket.SOCK_DGRAM)
        self.answerer.bind(("127.0.0.1", 4430))
        self._spoofed = 0

    def connect(self) -> None:
        """A new flow and its line, sometimes written in two pieces."""
        client = Client(self.source.choice(["127.0.0.1", "::1"]), 4430)
        self.truth[client] = f"user{self.source.randrange(40)}@x"
        line = client.line(self.truth[client], self.source.choice(["", "tcp:"]))
        cut = self.source.randrange(len(line))
        self.node.write(line[:cut])
        self.node.write(line[cut:])

    def reuse(self) -> None:
        """Other users' connections have the ends of some that were there a moment ago."""
        for client in self._some(4):
            del self.truth[client]
            reborn = Reborn(client)
            self.truth[reborn] = f"user{self.source.randrange(40)}@x"
            self.node.write(reborn.line(self.truth[reborn]))

    def _some(self, count: int) -> list[Client]:
        """Some of the connections."""
        tcp = [client for client in self.truth if client.flow.proto == socket.IPPROTO_TCP]
        return self.source.sample(tcp, min(count, len(tcp)))

    def move(self) -> None:
        """A UDP client changes its port and is known all the same; later its line comes."""
        address = self.source.choice(MOVERS)
        former = self.movers.get(address)
        mover = self.movers[address] = Mover(address)
        self.truth[mover] = f"mover{address}@x"
        if former is not None:
            del self.truth[former]
            former.sock.close()
            self.keep_awake()
            eventually(lambda: self.node.mark(mover), 15.0)
            assert self.wrong([mover]) == []
        self.node.write(mover.line(self.truth[mover]))
        self.settle()

    def keep_awake(self) -> None:
        """Conntrack forgets UDP flows after half a minute."""
        for mover in self.movers.values():
            mover.sock.send(b"x")

    def spoof(self, count: int) -> None:
        """SYNs from addresses that nobody has."""
        self._spoofed += count
        ours = socket.inet_aton("127.0.0.1")
        begin(
            [
                Flow(6, struct.pack(">I", 0x0A000000 + self._spoofed + n), 1_024, ours, 4430)
                for n in range(count)
            ],
            timeout_s=5,
        )

    def write_raw(self, *texts: bytes) -> None:
        """Lines that bear strangers' texts, and then what follows in a log."""
        for text in texts:
            self.node.write(stamped(FORMATS["trojan"][1] % (b"192.0.2.1:1", text)), b"tail\n")
        self.node.write(stamped(HARMLESS) * 40)

    def flood(self) -> None:
        """SYNs, and lines about flows that nobody has."""
        self.spoof(3_000)
        forged = b"2026/11/20 15:48:00.1 from 10.9.%d.%d:4444 accepted tcp:b:1 [in >> o] email: x@x"
        self.write_raw(*(b"a\n" + forged % (n >> 8, n & 255) for n in range(2_000)))

    def overflow(self) -> None:
        """More events than their socket holds, while the agent does not look."""
        assert self.node.agent is not None
        self.settle()
        self.node.agent.send_signal(signal.SIGSTOP)
        self.spoof(20_000)
        self.connect()
        self.node.agent.send_signal(signal.SIGCONT)

    def disconnect(self) -> None:
        """Some flows end."""
        for client in self._some(5):
            del self.truth[client]
            client.sock.close()

    def forge(self) -> None:
        """A stranger names live flows; the engine goes on with other lines."""
        clients = self.source.sample(list(self.truth), min(5, len(self.truth)))
        self.write_raw(*(b"a\n" + client.line("attacker@x") for client in clients))

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
        hearing = self._hearing()
        run("conntrack", "-F")
        for client in self.truth:
            client.sock.send(b"x")
        try:
            self.settle()
        except AssertionError:
            # The ends of a flood's flows, all at once, are more events than a busy machine reads.
            # Then nobody knows who had a tuple that comes back: it waits for its next line.
            if hearing == self._hearing() == ("events", hearing[1]):
                raise
            self.node.write(*(client.line(email) for client, email in self.truth.items()))
            self.settle()

    def _hearing(self) -> tuple[str, int]:
        """How the agent knows of flows, and how often events were lost."""
        follower = status(self.node)["follower"]
        return follower["flows_known_by"], follower["flows_lost_events"]

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

    def wrong(self, clients: list[Client] | None = None) -> list[str]:
        """Live flows (all, or of these clients) whose mark is not their user's."""
        clients = list(self.truth) if clients is None else clients
        minors = {o.minor: o.key for o in State(str(self.node.directory / "state")).owners()}
        marks = self.node.conntrack.get_marks([prepare(client.flow) for client in clients])
        return [
            f"{client.flow}: {minors.get((mark or 0) & 0xFFFF)!r}, but it is {self.truth[client]}"
            for client, mark in zip(clients, marks, strict=True)
            if minors.get((mark or 0) & 0xFFFF) != self.truth[client]
        ]


@pytest.mark.alone
@pytest.mark.timeout(int(SECONDS) + 300)
def test_no_flow_ends_with_a_wrong_mark(node: Node) -> None:
    source = random.Random(4)
    world = World(node, source)
    node.start()
    rare = [
        world.truncate, world.restart, world.kill, world.flush, world.change_policy, world.flood,
        world.overflow,
    ]  # fmt: skip
    often = [world.disconnect, world.forge, world.rotate, world.collect, world.reuse, world.move]
    start = time.monotonic()
    done: dict[str, int] = {}
    while (now := time.monotonic()) < start + SECONDS:
        if len(world.truth) < MAX_FLOWS:
            for _ in range(source.randrange(12)):
                world.connect()
        act = source.choice(rare if source.random() < 0.15 else often)
        print(f"{now - start:.2f} s: {act.__name__}")
        act()
        world.keep_awake()
        done[act.__name__] = done.get(act.__name__, 0) + 1
        time.sleep(source.random() * 0.2)
    world.settle()
    assert world.wrong() == [], done
    assert len(done) >= 9, done
    print(f"soak: {len(world.truth)} live flows right after {done}")
