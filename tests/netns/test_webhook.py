"""From an event of the engine to a mark, in a real kernel."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import prepare

from .harness import Client, Node, eventually, run, status

TOKEN = "0123456789abcdef"


class WebhookNode(Node):
    """A node whose engine posts to a unix socket; inbounds on two ports and two addresses."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = str(directory / "hook")
        settings = (directory / "settings.yml").read_text()
        settings = settings.replace("[4430]", "[4430, 4431]")
        (directory / "settings.yml").write_text(
            settings + f"identity_source: webhook\nwebhook_listen: unix:{self.socket}\n"
            "free_text_ports: all\n"
        )
        for address in ("127.0.0.1", "127.0.0.2"):
            for port in (4430, 4431):
                if (address, port) != ("127.0.0.1", 4430):
                    listener = socket.socket()
                    listener.bind((address, port))
                    listener.listen(64)
                    self.listeners.append(listener)

    def post(self, email: str | None, source: str, local: str | None, **more: object) -> int:
        """One event, as the engine sends it; returns the status."""
        event = {"email": email, "network": "udp", "source": source, "inboundTag": "in",
                 "inboundLocal": local, "ts": int(time.time()), **more}  # fmt: skip
        client = http.client.HTTPConnection("localhost", timeout=5)
        client.sock = self.connect()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        client.request("POST", "/", json.dumps(event), headers)
        status = client.getresponse().status
        client.close()
        return status

    def listen_on_a_port(self) -> None:
        """The webhook at a TCP port, with a token; before the agent starts."""
        path = self.directory / "settings.yml"
        text = path.read_text().replace(f"unix:{self.socket}", "127.0.0.1:23080")
        path.write_text(text + f"webhook_token: {TOKEN}\n")
        self.socket = ""

    def log_counters(self) -> dict[str, Any]:
        """What ``status`` says of the source."""
        counters: dict[str, Any] = status(self)["follower"]["log"]
        return counters

    def connect(self) -> socket.socket:
        """A connection to the webhook."""
        if not self.socket:
            return socket.create_connection(("127.0.0.1", 23080), 5)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.socket)
        return sock

    def announce(self, client: Client, email: str | None, local: str | None = None) -> int:
        return self.post(email, f"{client.text}:{client.port}", local)


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[WebhookNode]:
    made = WebhookNode(tmp_path)
    yield made
    made.stop()


def test_each_event_marks_its_connection(node: WebhookNode) -> None:
    node.start()
    alice = [Client("127.0.0.1", 4430), Client("::1", 4430)]
    bob, nobody = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    assert node.announce(alice[0], "alice@x", "127.0.0.1:4430") == 200
    assert node.announce(alice[1], "alice@x", "[::1]:4430") == 200
    assert node.announce(bob, "bob@x") == 200
    assert node.announce(nobody, None, "127.0.0.1:4430") == 200
    eventually(lambda: all(node.mark(client) for client in (*alice, bob)))
    assert node.mark(alice[0]) == node.mark(alice[1]) != node.mark(bob)
    assert node.mark(nobody) == 0
    up, down = node.classes()
    minor = (node.mark(alice[0]) or 0) & 0xFFFF
    assert (up[minor], down[minor]) == (5_000_000, 10_000_000)


def test_explain_says_when_an_event_named_somebody(node: WebhookNode) -> None:
    """The webhook leaves no line behind: the agent says when, and where it has it from."""
    node.start()
    kept = Client("127.0.0.1", 4430)
    assert node.announce(kept, "alice@x") < 300
    eventually(lambda: node.mark(kept))
    eventually(lambda: "last named: " in node.run("explain", "alice@x"), 12)
    said = node.run("explain", "alice@x").splitlines()[-1]
    assert (
        said == "1 without a line: the engine told it by the webhook, which leaves no line behind"
    )


def test_two_connections_of_one_address_and_port_are_told_apart(node: WebhookNode) -> None:
    node.start()
    flows = []
    for address, port in (("127.0.0.1", 4430), ("127.0.0.1", 4431), ("127.0.0.2", 4431)):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.9", 50_000))
        sock.connect((address, port))
        ends = [socket.inet_aton(text) for text in ("127.0.0.9", address)]
        flows.append((sock, Flow(6, ends[0], 50_000, ends[1], port)))
    node.post("carol@x", "127.0.0.9:50000", "127.0.0.2:4431")
    node.post("bob@x", "127.0.0.9:50000", "127.0.0.1:4431")
    node.post("carol@x", "127.0.0.9:50000", "127.0.0.2:4431")
    eventually(lambda: node.conntrack.get_marks([prepare(flows[1][1])])[0])
    untouched, bob, carol = node.conntrack.get_marks([prepare(flow) for _sock, flow in flows])
    assert untouched == 0
    assert bob
    assert carol
    assert bob != carol


def test_behind_dnat_the_flow_is_found_all_the_same(node: WebhookNode) -> None:
    run(
        "nft", "-f", "-",
        stdin="table ip elsewhere { chain out { type nat hook output priority -100; "
        "ip daddr 127.0.0.1 tcp dport 4430 dnat to 127.0.0.2:4431; }; }",
    )  # fmt: skip
    node.start()
    client = Client("127.0.0.1", 4430)
    node.announce(client, "alice@x", "127.0.0.2:4431")
    eventually(lambda: node.mark(client))


def test_garbage_marks_nothing_and_stops_nothing(node: WebhookNode) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    source = f"127.0.0.1:{client.port}"
    assert node.post("a\nb", source, "127.0.0.1:4430") == 200
    assert node.post("alice@x", source, "127.0.0.1:4430", ts=1) == 200
    assert node.post("alice@x", source + "x", "127.0.0.1:4430") == 200
    assert node.post("alice@x", source, None, inboundTag=5) == 400
    for junk in (b"\0" * 9_000, b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(node.socket)
            sock.sendall(junk)
    time.sleep(0.1)
    assert node.mark(client) == 0
    assert node.announce(client, "alice@x", "127.0.0.1:4430") == 200
    eventually(lambda: node.mark(client))
    eventually(lambda: status(node)["follower"]["log"]["stale"])


class Slowloris(threading.Thread):
    """Somebody who holds 400 connections that say a byte at a time and never end."""

    def __init__(self, node: WebhookNode) -> None:
        super().__init__()
        self.node = node
        self.ready, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        text = b"POST / HTTP/1.1\r\nX-" + b"y" * 400
        held: list[tuple[socket.socket, int]] = []
        while not self.stop.is_set():
            kept = []
            for sock, said in held:
                try:
                    sock.sendall(text[said : said + 1])
                except OSError:
                    sock.close()
                else:
                    kept.append((sock, said + 1))
            with contextlib.suppress(OSError):  # no room in the kernel's queue at the moment
                while len(kept) < 400:
                    kept.append((self.node.connect(), 0))
                self.ready.set()
            held = kept
            self.stop.wait(0.01)
        for sock, _said in held:
            sock.close()


@pytest.mark.parametrize("port", [True, False], ids=["port", "unix"])
def test_400_half_open_requests_keep_no_event_out(node: WebhookNode, port: bool) -> None:
    if port:
        node.listen_on_a_port()
    node.start()
    attacker = Slowloris(node)
    attacker.start()
    try:
        assert attacker.ready.wait(20)
        clients = [Client("127.0.0.1", 4430) for _ in range(40)]
        for number, client in enumerate(clients):
            # An engine gives up after five seconds, and so does `post`.
            assert node.announce(client, f"user{number}@x", "127.0.0.1:4430") == 200
        eventually(lambda: all(node.mark(client) for client in clients))
    finally:
        attacker.stop.set()
        attacker.join()
    eventually(lambda: node.log_counters()["claims"] == 40)
    log = node.log_counters()
    assert log["connections"] > 400
    assert log["last_event_s"] is not None
    assert set(log["refused"]) <= {"silent", "slow", "deaf"}


def test_after_a_kill_the_socket_serves_again(node: WebhookNode) -> None:
    node.start()
    node.stop(signal.SIGKILL)
    node.start()
    client = Client("127.0.0.1", 4430)
    assert node.announce(client, "alice@x", "127.0.0.1:4430") == 200
    eventually(lambda: node.mark(client))
    node.stop()
    assert not Path(node.socket).exists()


def test_flows_are_marked_again_when_the_conntrack_table_is_flushed(node: WebhookNode) -> None:
    node.start()
    clients = [Client("127.0.0.1", 4430 + number % 2) for number in range(6)]
    for number, client in enumerate(clients):
        node.announce(client, "alice@x", f"127.0.0.1:{4430 + number % 2}")
    eventually(lambda: all(node.mark(client) for client in clients))
    run("conntrack", "-F")
    for client in clients:
        client.sock.sendall(b"x")
    eventually(lambda: all(node.mark(client) for client in clients))
