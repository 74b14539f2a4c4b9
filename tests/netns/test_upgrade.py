"""An upgrade from the release before, under traffic: no flow loses its mark, no user the limit.

``tests/samples/release`` holds what its agent has written and made: the state as SQL, the nft table
and the trees as nft and tc list them. It went down in a namespace of its own, where its agent had
four users, an order and a quota; what differs between machines stands there between two @.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import ROOT
from vff_qos.core.owners import ACTIVE
from vff_qos.core.policy.periods import period
from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.state import State
from vff_qos.state_file import SCHEMA_VERSION

from .harness import Client, Node, eventually, run, status
from .healing import plan_without_filters

RELEASE = ROOT / "tests/samples/release"
SCHEMA = 4
QUOTA = 3_000_000_000
#: {user: (minor, upload, download)}
USERS = {
    "alice@x": (2, 5_000_000, 10_000_000),
    "bob@x": (3, 100_000_000_000, 100_000_000_000),
    "carol@x": (4, 2_000_000, 1_000_000),  # an order lowers her download
    "dora@x": (5, 2_000_000, 3_000_000),
}
POLICY = """\
plans:
  basic: {upload: 5mbit, download: 10mbit, quota: {limit: 5GB, per: month, reset: 1, then: slow}}
  slow: {upload: 1mbit, download: 1500kbit}
users:
  alice@x: {plan: basic}
  bob@x: {unlimited: true}
"""


class UpgradedNode(Node):
    """A node as the release before has left it, with its users' live connections."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.write_policy(POLICY)
        settings = directory / "settings.yml"
        settings.write_text(settings.read_text() + "early_shaping: true\n")
        run("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
        run("ip", "link", "add", "vffqos0", "type", "ifb")
        run("ip", "link", "set", "vffqos0", "alias", "vff-qos", "txqueuelen", "1000")
        for device in ("wan0", "wan1", "vffqos0"):
            run("ip", "link", "set", device, "up")
        run("tc", "-batch", str(RELEASE / "trees.tc"))
        run("nft", "-f", str(RELEASE / "table.nft"))
        self.clients = {
            email: Client("::1" if email == "dora@x" else "127.0.0.1", 4430) for email in USERS
        }
        self.write(*(client.line(email) for email, client in self.clients.items()))
        marks = [
            prepare(self.clients[email].flow, 0x51000000 | minor)
            for email, (minor, *_limits) in USERS.items()
        ]
        assert not self.conntrack.set_marks(marks)
        (directory / "state").mkdir()
        with contextlib.closing(sqlite3.connect(self.state)) as db:
            db.executescript(self._state_text())

    @property
    def state(self) -> Path:
        return self.directory / "state/state.db"

    def _state_text(self) -> str:
        log = self.log.stat()
        known = {
            "UNTIL": str(time.time() + 7_200),
            "MONTH": str(period("month", 1, time.time())[0]),
            "DEVICE": str(log.st_dev),
            "INODE": str(log.st_ino),
            "OFFSET": str(log.st_size),
            "FINGERPRINT": self.log.read_bytes()[:256].hex(),
            "WAN": str(socket.if_nametoindex("wan0")),
        }
        text = (RELEASE / "state.sql").read_text()
        return re.sub(r"@([A-Z]+)@", lambda found: known[found[1]], text)

    def limits(self) -> dict[str, tuple[int | None, int | None]]:
        up, down = self.classes()
        return {email: (up.get(minor), down.get(minor)) for email, (minor, *_) in USERS.items()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UpgradedNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = UpgradedNode(tmp_path)
    yield made
    made.stop()


@contextlib.contextmanager
def heard(*command: str) -> Iterator[list[str]]:
    """Every line that a monitor has printed, when the block has ended."""
    lines: list[str] = []
    with tempfile.TemporaryFile("w+") as output:
        monitor = subprocess.Popen(
            ["stdbuf", "-oL", *command], stdout=output, stderr=subprocess.DEVNULL
        )
        time.sleep(0.5)  # until it listens
        try:
            yield lines
            time.sleep(0.5)  # until it has told
        finally:
            monitor.terminate()
            monitor.wait()
        output.seek(0)
        lines += output


@contextlib.contextmanager
def traffic(node: UpgradedNode) -> Iterator[None]:
    """Everybody sends all the time; none of it may be lost."""
    servers, over = [], threading.Event()
    for listener in node.listeners:
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                servers.append(listener.accept()[0])
    assert len(servers) == len(node.clients)
    sent = 0

    def send() -> None:
        nonlocal sent
        while not over.wait(0.005):
            sent += 1
            for client in node.clients.values():
                client.sock.sendall(b"x")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
    for server in servers:
        server.settimeout(5)
        data = b""
        while len(data) < sent:
            data += server.recv(1 << 16)
        assert data == b"x" * sent
        server.close()


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.execute(f"SELECT * FROM {table} ORDER BY 1"))


def schema(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def upgrade(node: UpgradedNode) -> None:
    """As the role does it: the kernel's objects first, then the agent."""
    node.run("bootstrap")
    node.start()
    eventually(lambda: status(node)["users"])


def test_no_flow_loses_its_mark_and_no_user_the_limit(node: UpgradedNode) -> None:
    assert node.limits() == {email: tuple(limits) for email, (_m, *limits) in USERS.items()}
    with (
        heard("conntrack", "-E", "-p", "tcp") as flows,
        heard("tc", "monitor") as trees,
        traffic(node),
    ):
        upgrade(node)
        late = Client("127.0.0.1", 4430)
        node.write(late.line("alice@x"))
        eventually(lambda: node.mark(late))
    assert node.limits() == {email: tuple(limits) for email, (_m, *limits) in USERS.items()}
    for email, client in node.clients.items():
        mark = 0x51000000 | USERS[email][0]
        assert node.mark(client) == mark
        told = [line for line in flows if f"sport={client.port} " in line]
        assert [line for line in told if f"mark={mark}\n" not in line or "DESTROY" in line] == []
    minors = "|".join(str(minor) for minor, *_limits in USERS.values())
    gone = re.compile(rf"deleted (class htb 5100:({minors}) |qdisc (htb|pfifo ({minors}):))")
    assert [line for line in trees if gone.search(line)] == []
    # What the monitors would have said of a loss.
    assert any(f"sport={late.port} " in line for line in flows)
    assert node.run("bootstrap", "--plan") == "no change\n"


def test_the_state_is_brought_to_the_new_schema_and_its_old_copy_kept(node: UpgradedNode) -> None:
    tables = ("owners", "overrides", "usage", "vals")
    before = {table: rows(node.state, table) for table in tables}
    upgrade(node)
    copy = node.state.with_name(f"state.db.schema-{SCHEMA}")
    assert schema(copy) == SCHEMA < schema(node.state) == SCHEMA_VERSION
    assert {table: rows(copy, table) for table in tables} == before
    state = State(str(node.directory / "state"))
    owners = {owner.key: owner for owner in state.owners()}
    for email, (minor, *_limits) in USERS.items():
        assert (owners[email].minor, owners[email].state) == (minor, ACTIVE)
    assert [(o.email, o.entry, o.who) for o in state.overrides()] == [
        ("carol@x", {"download": "1mbit"}, "root")
    ]
    (_key, _minor, _up, _down, used) = next(state.usage("alice@x"))
    assert used["quota"][1:] == [0, QUOTA]
    state.close()
    # Who was there before is removed as whoever came later: the record of the time before us holds.
    node.stop()
    node.run("remove")
    assert "5100:" not in run("tc", "qdisc", "show") and "clsact" not in run("tc", "qdisc", "show")
