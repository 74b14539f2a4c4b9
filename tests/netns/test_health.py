"""Seeded faults: status names each with its remedy and its exit code, and is quiet afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.counters import inside
from vff_qos.core.plan.desired import our_table
from vff_qos.kernel import nft

from .harness import CLIENT, NODE, SETTINGS, Client, Node, eventually, look, run, status, user
from .healing import HealingNode, plan_without_filters
from .senders import send_through

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")


def kinds(node: Node) -> list[str]:
    """Kinds of the findings that are worth a look."""
    return [f["kind"] for f in status(node)["findings"] if f["level"] != "OK"]


def finding(node: Node, kind: str) -> dict[str, Any]:
    """One finding by its kind."""
    found = [f for f in status(node)["findings"] if f["kind"] == kind]
    assert found, kinds(node)
    (one,) = found
    assert one["sentence"] and one["remedy"]
    return dict(one)


def told(node: Node, kind: str, within_s: float = 12.0) -> dict[str, Any]:
    """A finding that comes, with what `status` shows of it and how it ends."""
    eventually(lambda: kind in kinds(node), within_s)
    one = finding(node, kind)
    code, text = look(node)
    assert code == {"DEGRADED": 1, "TROUBLE": 2}[one["level"]]
    assert f"{one['level']}: {one['sentence']}\n" in text
    assert f"  do: {one['remedy']}\n" in text
    assert text.splitlines()[0].split(":")[0] in ("DEGRADED", "TROUBLE")
    # Doctor says the same, in the same words.
    done = subprocess.run(
        node.command("doctor", "--json", "--no-canary"), capture_output=True, text=True, check=False
    )
    assert done.returncode >= code
    same = [f for f in json.loads(done.stdout)["findings"] if f["kind"] == kind]
    assert [(f["sentence"], f["remedy"]) for f in same] == [(one["sentence"], one["remedy"])]
    return one


def quiet(node: Node, within_s: float = 12.0) -> None:
    """Nothing is wrong (any more)."""
    eventually(lambda: not kinds(node), within_s)
    code, text = look(node)
    assert (code, text.splitlines()[0]) == (0, "OK: nothing is wrong")


def busy(node: Node, email: str) -> Client:
    """A user whose traffic passes the classes from the first mark on."""
    client = user(node, email)
    for device in ("wan0", "vffqos0"):
        send_through(device, (node.mark(client) or 0) & 0xFFFF)
    return client


def set_up(node: Node) -> Client:
    """A whole node with one user, whose traffic passes the classes."""
    nft.replace_table(our_table(SETTINGS))
    node.start()
    return user(node, "alice@x")


def setting(node: Node, key: str, value: str) -> None:
    path = node.directory / "settings.yml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, f"{key}: {value}", ""]))


def restart(node: Node) -> None:
    node.stop()
    node.start()


# -- a healthy node -------------------------------------------------------------------------------


def test_a_healthy_node_has_no_finding(node: Node) -> None:
    first = set_up(node)
    # Traffic is looked at from the first report of a mark on.
    eventually(lambda: status(node)["follower"]["marked"], 12)
    kept = [first, *(busy(node, f"user{number}@x") for number in range(12))]
    quiet(node, 1)
    # Also when the follower has looked whether traffic passes.
    eventually(lambda: status(node)["follower"]["traffic"], 12)
    quiet(node, 1)
    found = status(node)
    assert len(found["users"]) == len(kept)
    assert found["follower"]["sources"][0]["trust"] == "text"
    assert found["follower"]["sources"][0]["last_claim_s"] is not None


def test_status_is_one_screen_in_an_order_for_people(node: Node) -> None:
    set_up(node)
    kept = [busy(node, f"user{number}@x") for number in range(12)]
    send_through("wan0", (node.mark(kept[11]) or 0) & 0xFFFF)
    code, text = look(node)
    rows = [line.split()[0] for line in text.splitlines() if "@x" in line]
    assert len(rows) == 10 and "alice@x" in rows
    rows = [line.split()[0] for line in look(node, "--all", "--sort", "name")[1].splitlines()
            if "@x" in line]  # fmt: skip
    assert rows == ["alice@x", *(f"user{number}@x" for number in range(12))]
    text = look(node, "--sort", "bytes")[1]
    assert next(line for line in text.splitlines() if "@x" in line).startswith("user11@x")
    assert [u["email"] for u in status(node, "user1*@x")["users"]] == [
        "user1@x", "user10@x", "user11@x",
    ]  # fmt: skip
    assert code == 0


# -- the seeded faults ----------------------------------------------------------------------------


def test_a_wrong_log_path(node: Node) -> None:
    set_up(node)
    setting(node, "xray_access_log_path", str(node.directory / "other.log"))
    restart(node)
    one = told(node, "source_missing")
    assert "other.log: there is no such log" in one["sentence"]
    setting(node, "xray_access_log_path", str(node.log))
    restart(node)
    quiet(node)


def test_a_masked_log(node: Node) -> None:
    client = set_up(node)
    masked = client.line("alice@x").replace(b"127.0.0.1", b"127.0.*.*")
    node.write(masked)
    assert "maskAddress" in told(node, "masked")["remedy"]
    node.write(client.line("alice@x"))
    quiet(node)


def test_a_mixed_log(node: Node) -> None:
    set_up(node)
    now = time.strftime("%Y/%m/%d %H:%M:%S")
    node.write(f"{now}.000001 [Info] [123] proxy/vless/inbound: firstLen = 1186\n".encode())
    assert "its own file" in told(node, "mixed")["remedy"]
    restart(node)
    quiet(node)


@contextlib.contextmanager
def elsewhere(listener: socket.socket) -> Iterator[str]:
    """A namespace at the other end of the WAN device; from there ``listener`` can be reached at
    `NODE`, port 4430."""
    own = os.readlink("/proc/self/ns/net")
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as process:
        try:
            there = f"/proc/{process.pid}/ns/net"
            eventually(lambda: os.readlink(there) != own)
            run("ip", "link", "set", "wan1", "netns", str(process.pid))
            run("ip", "address", "add", f"{NODE}/24", "dev", "wan0")
            with inside(there):
                run("ip", "address", "add", f"{CLIENT}/24", "dev", "wan1")
                run("ip", "link", "set", "wan1", "up")
            listener.bind((NODE, 4430))
            listener.listen(64)
            yield there
        finally:
            process.kill()


def test_a_wrong_service_port(node: Node) -> None:
    """Of clients elsewhere: what comes from this node itself would be a front."""
    setting(node, "service_ports", "[443]")
    nft.replace_table(our_table(SETTINGS))
    node.start()
    with socket.socket() as listener, elsewhere(listener) as there:
        with inside(there):
            clients = [Client(NODE, 4430) for _ in range(6)]
        check_wrong_service_port(node, clients)


def check_wrong_service_port(node: Node, clients: list[Client]) -> None:
    node.write(clients[0].line("alice@x"))
    eventually(lambda: "1 flow not found" in look(node)[1], 12)  # the first look is at the past
    node.write(*(client.line("alice@x") for client in clients))
    one = told(node, "no_flow")
    assert "4430" in one["sentence"]
    assert any("go to port 4430, which is none of the service ports (443)" in line
               for line in one["evidence"])  # fmt: skip
    setting(node, "service_ports", "[4430]")
    restart(node)
    node.write(clients[0].line("alice@x"))
    eventually(lambda: node.mark(clients[0]))
    quiet(node)


def test_connections_that_ended_before_the_start_are_no_fault(node: Node) -> None:
    """A play that ends a suspension asks for the status when the log of that time was just read."""
    gone = Client("127.0.0.1", 4430)
    gone.port = 9  # nothing of it is in conntrack
    node.write(*(gone.line(f"user{number}@x") for number in range(6)))
    node.start()
    eventually(lambda: "6 flow not found" in look(node)[1], 12)
    assert kinds(node) == []


def test_a_class_deleted_while_the_agent_is_stopped(node: Node) -> None:
    client = set_up(node)
    node.stop(signal.SIGKILL)
    minor = f"{(node.mark(client) or 0) & 0xFFFF:x}"
    run("tc", "class", "del", "dev", "wan0", "classid", f"5100:{minor}")
    assert "systemctl start vff-qos-follow" in told(node, "follower")["remedy"]
    one = told(node, "no_class")
    assert one["sentence"].endswith(": alice@x")
    node.start()
    quiet(node)


def test_a_policy_with_a_mistake(node: Node) -> None:
    set_up(node)
    good = (node.directory / "policy.yml").read_text()
    node.write_policy("users:\n  alice@x: {upload: 5mbps}\n")
    one = told(node, "policy")
    assert f"{node.directory}/policy.yml:3: " in one["sentence"]
    assert look(node)[1].index("policy.yml:3") < look(node)[1].index("alice@x ")
    (node.directory / "policy.yml").write_text(good)
    quiet(node)


def test_the_source_is_silent_while_the_service_is_busy(node: Node) -> None:
    """Also where connections begin right after a claim that came between two ticks."""
    set_up(node)
    user(node, "bob@x")
    clients = [Client("127.0.0.1", 4430) for _ in range(12)]
    # Lines without a user say nothing.
    node.write(*(client.line("x").replace(b" email: x", b"") for client in clients))
    one = told(node, "source_silent", 40)
    assert any("12 new connections since the last claim" in line for line in one["evidence"])
    node.write(*(client.line("alice@x") for client in clients))
    for client in clients:
        eventually(lambda client=client: node.mark(client))
        for device in ("wan0", "vffqos0"):
            send_through(device, (node.mark(client) or 0) & 0xFFFF)
    quiet(node)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealingNode]:
    """A node whose repairs work in this kernel."""
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path)
    yield made
    made.stop()


def test_nftables_flushed_every_second(whole: HealingNode) -> None:
    quiet(whole)
    child = subprocess.Popen(["sh", "-c", "while nft flush ruleset; do sleep 1; done"])
    try:
        one = told(whole, "contended", 40)
    finally:
        child.kill()
        child.wait()
    assert one["sentence"].endswith(" by 'nft'") and "nft flush ruleset" in one["remedy"]
    quiet(whole, 40)


def test_marks_that_a_firewall_overwrites(node: Node) -> None:
    set_up(node)
    clients = [busy(node, f"user{number}@x") for number in range(8)]
    quiet(node)
    run("nft", "-f", "-", stdin="""
        table inet theirs {
          chain c { type filter hook input priority 0; tcp dport 4430 ct mark set 0x17; }
        }
    """)  # fmt: skip
    for client in clients:
        client.sock.send(b"x")
    eventually(lambda: node.mark(clients[-1]) == 0x17)
    one = told(node, "marks_overwritten")
    assert "8 of 9 connections have lost the mark" in one["sentence"]
    run("nft", "delete", "table", "inet", "theirs")
    for client in clients:
        client.sock.close()
    run("conntrack", "-D", "-m", "0x17")
    quiet(node)


def test_a_full_conntrack_table(node: Node) -> None:
    set_up(node)
    quiet(node)
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    # However long it takes, none ends while it is looked at.
    Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("600")
    fill_conntrack(round(0.93 * most))
    one = told(node, "conntrack_full", 2)
    assert "nf_conntrack_max=" in one["remedy"] and f"of {most}" in one["evidence"][0]
    run("conntrack", "-F")
    quiet(node)


def fill_conntrack(count: int) -> None:
    """So many entries: a datagram to a port of this host makes one, and nobody answers it."""
    sender = 0
    while count > 0:
        sender += 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.0.1.{sender}", 9))
            for port in range(1, min(count, 65_000) + 1):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"", ("127.0.2.1", port))
        count -= 65_000


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [("suspend", "suspended", "suspended by hand"), ("stop", "follower", "does not run")],
)
def test_what_a_person_did_is_told(node: Node, how: str, kind: str, words: str) -> None:
    set_up(node)
    if how == "stop":
        node.stop()
    else:
        node.run("suspend")
    assert words in told(node, kind)["sentence"]
