"""What others break is whole again within a second, and users keep their limits.

The agent and its repairs run as on a node. Where the kernel lacks our filters, plans are made
without them, in child processes too.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.config import Paths
from vff_qos.core.claims.accesslog import Scanner
from vff_qos.core.policy.model import Limits, Policy
from vff_qos.core.settings import Settings
from vff_qos.follower import heal
from vff_qos.follower.assign import Assigner
from vff_qos.journal import Journal
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.links import read_links
from vff_qos.kernel.packed.monitor import Monitor
from vff_qos.kernel.packed.netlink import Interrupted, Netlink
from vff_qos.kernel.packed.tc import Tc
from vff_qos.lock import Lock
from vff_qos.state import State

from .harness import Client, root_of, run, status
from .healing import WITHIN_S, HealingNode, plan_without_filters


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealingNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize(
    "harm",
    [
        "nft flush ruleset",
        "nft delete table inet vff_qos",
        "nft flush chain inet vff_qos post",
        "tc qdisc del dev wan0 root",
        "tc qdisc del dev vffqos0 root",
        "tc qdisc replace dev vffqos0 root pfifo",
        "tc class del dev wan0 classid 5100:{minor:x}",
        "tc qdisc del dev wan0 clsact",
        "ip link del vffqos0",
        "ip link set vffqos0 down",
    ],
)
def test_heals_within_a_second(node: HealingNode, harm: str) -> None:
    run(*harm.format(minor=node.minor).split())
    print(f"{harm}: whole again after {node.wait(node.is_whole):.2f} s")
    # New users are served, and nobody has lost a mark.
    another = Client("127.0.0.1", 4430)
    node.write(another.line("bob@x"))
    node.wait(lambda: node.mark(another))
    assert (node.mark(node.client) or 0) & 0xFFFF == node.minor
    if "class del" not in harm:
        node.hears("healed: ")


def test_what_broke_while_no_agent_ran_is_healed(node: HealingNode) -> None:
    node.stop()
    run("nft", "flush", "ruleset")
    assert not node.is_whole()
    node.start()
    node.wait(node.is_whole)


def test_who_broke_it_is_named_and_not_the_repair(node: HealingNode) -> None:
    run("nft", "flush", "ruleset")
    node.wait(node.is_whole)
    node.wait(lambda: status(node)["follower"]["repair"]["changes"])
    assert status(node)["follower"]["repair"]["culprit"] == "nft"


def test_wan_down_and_up_and_renamed(node: HealingNode) -> None:
    run("ip", "link", "set", "wan0", "down")
    time.sleep(0.5)
    run("ip", "link", "set", "wan0", "up")
    run("ip", "route", "replace", "default", "via", "10.9.0.2")
    node.wait(node.is_whole)
    run("ip", "link", "set", "wan0", "down")
    run("ip", "link", "set", "wan0", "name", "net0")
    run("ip", "link", "set", "net0", "up")
    run("ip", "route", "replace", "default", "via", "10.9.0.2")
    node.wait(lambda: node.is_whole("net0"))
    carol = Client("127.0.0.1", 4430)
    node.write(carol.line("carol@x"))
    node.wait(lambda: node.mark(carol))


def test_the_default_route_moves_to_another_device(node: HealingNode) -> None:
    run("ip", "route", "replace", "default", "via", "10.8.0.2", "dev", "spare0")
    print(f"moved after {node.wait(lambda: node.is_whole('spare0')):.2f} s")
    node.wait(lambda: "5100:" not in root_of("wan0"))
    assert "clsact" not in run("tc", "qdisc", "show", "dev", "wan0")
    # Away and back within one repair.
    run("ip", "route", "replace", "default", "via", "10.9.0.2", "dev", "wan0")
    node.wait(node.is_whole)


def test_the_way_out_moves_by_halves_of_a_default_route_and_by_rules(node: HealingNode) -> None:
    via = ("via", "10.8.0.2", "dev", "spare0")
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        run("ip", "route", "add", half, *via)
    node.wait(lambda: node.is_whole("spare0"))
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        run("ip", "route", "del", half)
    node.wait(node.is_whole)
    run("ip", "route", "add", "default", *via, "table", "77")
    run("ip", "rule", "add", "not", "fwmark", "0xca6c", "lookup", "77")
    node.wait(lambda: node.is_whole("spare0"))
    run("ip", "rule", "del", "not", "fwmark", "0xca6c", "lookup", "77")
    node.wait(node.is_whole)


def test_what_is_broken_during_a_repair_is_healed_too(node: HealingNode) -> None:
    for _ in range(4):
        run("nft", "flush", "chain", "inet", "vff_qos", "post")
        time.sleep(0.15)
        run("tc", "qdisc", "del", "dev", "wan0", "root")
        node.wait(node.is_whole)


def test_deleted_classes_come_back_with_a_line_and_without_one(node: HealingNode) -> None:
    def delete_classes() -> None:
        run("conntrack", "-F")
        for device in ("wan0", "vffqos0"):
            run("tc", "class", "del", "dev", device, "classid", f"5100:{node.minor:x}")

    delete_classes()
    # Repeated lines of a flow that is known set its mark without a look at the class.
    node.wait(node.is_whole)
    node.client.sock.send(b"alive")
    node.write(node.client.line("alice@x"))
    node.wait(lambda: node.mark(node.client))
    node.client.sock.close()
    node.stop()
    run("conntrack", "-F")
    node.start()
    delete_classes()
    # She has no flow any more, nor had one since the agent's start.
    node.wait(node.is_whole)
    again = Client("127.0.0.1", 4430)
    node.write(again.line("alice@x"))
    node.wait(lambda: node.mark(again))


def test_starts_where_somebody_took_the_devices_away(node: HealingNode) -> None:
    node.stop()
    run("ip", "link", "del", "vffqos0")
    agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
    node.agent = agent
    assert agent.stderr is not None
    assert "vffqos0 does not exist" in agent.stderr.readline()
    node.wait(node.is_whole)


def test_users_classes_are_looked_at_where_there_was_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "repair_command", lambda _paths: [sys.executable, "-c", ""])
    monkeypatch.setattr(heal, "_RECONCILE_S", 0.0)
    paths = Paths(run_dir=str(tmp_path))
    healer = heal.Healer(paths, Settings(), Journal(), (), (0, 0))
    monkeypatch.setattr(heal, "_RECONCILE_S", 3_600.0)  # the first is due at once, no other

    def repair(wanted: bool) -> list[str] | None:
        assert healer.turn(time.monotonic(), wanted) is None
        while healer.due() is not None:  # the distance to the last one
            assert healer.turn(time.monotonic(), False) is None
        assert select.select([healer.fileno()], [], [], WITHIN_S)[0]
        return healer.turn(time.monotonic(), False)

    assert repair(wanted=False) is None
    assert repair(wanted=True) == []


def test_what_is_refused_during_a_repair_leads_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = [sys.executable, "-c", ""]
    monkeypatch.setattr(heal, "repair_command", lambda _paths: ended)
    healer = heal.Healer(Paths(), Settings(), Journal(), (), (0, 0))

    def repaired() -> bool:
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until and (found := healer.turn(time.monotonic(), False)) is None:
            time.sleep(0.001)
        return found == []

    assert healer.turn(time.monotonic(), wanted=True) is None
    while healer.due() is not None:
        assert healer.turn(time.monotonic(), wanted=False) is None
    assert healer.turn(time.monotonic(), wanted=True) is None  # it has just been started
    assert repaired() and repaired()


def test_a_repair_that_hangs_is_ended_and_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(heal, "repair_command", lambda _paths: sleep)
    monkeypatch.setattr(heal, "_MAX_REPAIR_S", 0.0)
    healer = heal.Healer(Paths(), Settings(), Journal(), (), (0, 0))
    while "repair failed: it ended with -9" not in capfd.readouterr().err:
        assert healer.turn(time.monotonic(), True) is None
        time.sleep(0.01)
    assert (due := healer.due()) is not None and due < time.monotonic() + heal._MAX_BACKOFF_S


def test_strange_devices_and_tables_wake_nobody(node: HealingNode) -> None:
    index = [socket.if_nametoindex(name) for name in ("vffqos0", "wan0")]
    monitor = Monitor((), {"vffqos0", "auto"})
    monitor.watch((index[0], index[1]))
    run("ip", "link", "add", "docker0", "type", "bridge")
    run("tc", "qdisc", "add", "dev", "spare0", "root", "pfifo")
    run("nft", "add", "table", "inet", "docker")
    run("ip", "route", "add", "192.0.2.0/24", "via", "10.8.0.2")
    heard = monitor.listen()
    assert not heard.kernel and not heard.routes and not heard.ifb_lost
    run("ip", "address", "add", "10.7.0.1/24", "dev", "docker0")
    assert monitor.listen().addresses
    run("ip", "link", "set", "vffqos0", "down")
    heard = monitor.listen()
    assert heard.ifb_lost and heard.kernel
    monitor.close()


def test_a_monitor_that_lost_messages_takes_everything_for_changed(node: HealingNode) -> None:
    monitor = Monitor((), ())
    monitor._route.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(50):
        run("ip", "link", "add", f"x{number}", "type", "ifb")
    heard = monitor.listen()
    assert heard.kernel and heard.addresses and heard.routes
    monitor.close()


def test_answers_that_do_not_fit_the_receive_buffer(tmp_path: Path, trees: tuple[str, str]) -> None:
    address = socket.inet_aton("127.0.0.1")
    ifb, wan = (socket.if_nametoindex(name) for name in trees)
    assigner = Assigner(
        Settings(wan="wan0", leaf="pfifo", service_ports=((4430, 4430),)),
        Policy(Limits(10**7, 10**7)), State(str(tmp_path)), Lock(str(tmp_path)), Journal(),
        (ifb, wan), [address],
    )  # fmt: skip
    assigner.adopt()
    listener = socket.create_server(("127.0.0.1", 4430), backlog=512)
    clients = [Client("127.0.0.1", 4430) for _ in range(200)]
    for netlink in (assigner._conntrack.netlink, assigner._tc.netlink):
        netlink._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    lines = b"".join(client.line(f"user{n}@x") for n, client in enumerate(clients))
    assigner.assign(Scanner().scan(lines))
    assigner.adopt()  # and dumps
    conntrack, tc = Conntrack(), Tc()
    marks = conntrack.get_marks([prepare(client.flow) for client in clients])
    assert all(marks) and len(set(marks)) == 200
    for index in (ifb, wan):
        assert len(tc.classes(index, 0x5100)) == 200 + 2
    for closing in (assigner, conntrack, tc, listener):
        closing.close()


def test_a_dump_that_changes_interrupt_is_read_again() -> None:
    """Links come and go while they are listed; no list misses one that was there all the time."""
    for number in range(60):
        run("ip", "link", "add", f"stay{number}", "type", "ifb")
    script = "".join(f"link add come{n} type ifb\nlink del come{n}\n" for n in range(20))
    going = threading.Event()
    going.set()

    def churn() -> None:
        while going.is_set():
            run("ip", "-batch", "-", stdin=script)

    interrupted = 0

    class Counting(Netlink):
        def messages(self, *args: object) -> Iterator[bytes]:
            nonlocal interrupted
            try:
                yield from super().messages(*args)  # type: ignore[arg-type]
            except Interrupted:
                interrupted += 1
                raise

    thread = threading.Thread(target=churn)
    thread.start()
    netlink = Counting(socket.NETLINK_ROUTE)
    try:
        deadline = time.monotonic() + 60
        while interrupted < 5 and time.monotonic() < deadline:
            found = read_links(netlink)
            assert {f"stay{number}" for number in range(60)} <= found.keys()
    finally:
        going.clear()
        thread.join()
        netlink.close()
    assert interrupted >= 5
