"""From a line in a log to a mark and a class, in a real kernel."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from vff_qos.core.owners import PARKED
from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.state import State

from .harness import Client, Node, ceils, eventually, fill, look, run, small_disk, status, user


def test_each_user_gets_one_class_with_its_own_limits(node: Node) -> None:
    node.start()
    alice = [Client("127.0.0.1", 4430), Client("::1", 4430)]
    bob = Client("127.0.0.1", 4430)
    node.write(alice[0].line("alice@x"), alice[1].line("alice@x"), bob.line("bob@x", "tcp:"))
    eventually(lambda: all(node.mark(client) for client in (*alice, bob)))
    assert node.mark(alice[0]) == node.mark(alice[1]) != node.mark(bob)
    up, down = node.classes()
    minor = (node.mark(alice[0]) or 0) & 0xFFFF
    assert (up[minor], down[minor]) == (5_000_000, 10_000_000)
    minor = (node.mark(bob) or 0) & 0xFFFF
    assert (up[minor], down[minor]) == (2_000_000, 3_000_000)


def test_addresses_from_a_header_that_a_client_may_send_are_told_of(node: Node) -> None:
    """WS, XHTTP and HTTPUpgrade inbounds print the first X-Forwarded-For and port 0."""
    node.start()
    client = Client("127.0.0.1", 4430)
    source = f"{client.text}:{client.port}".encode()
    node.write(*[client.line("alice@x").replace(source, b"203.0.113.5:0")] * 50)
    told = node.directory / "run/told.json"

    def is_told() -> bool:
        """What is seen twice is told."""
        return told.exists() and json.loads(told.read_text()).get("no_port", {}).get("is_told")

    eventually(is_told, 30)
    assert node.mark(client) == 0
    assert node.agent is not None
    node.agent.terminate()
    _output, said = node.agent.communicate(timeout=10)
    node.agent = None
    assert "come from a header (port 0)" in said
    assert "trustedXForwardedFor" in said


def test_a_mark_of_other_software_is_left_alone(node: Node) -> None:
    node.start()
    client, other = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.conntrack.set_marks([prepare(client.flow, 0x1234)])
    node.write(client.line("alice@x"), other.line("alice@x"))
    eventually(lambda: node.mark(other))
    assert node.mark(client) == 0x1234


def test_lines_written_while_the_agent_was_killed_are_replayed(node: Node) -> None:
    node.start()
    first = Client("127.0.0.1", 4430)
    node.write(first.line("alice@x"))
    eventually(lambda: node.mark(first))
    before = node.mark(first)
    node.stop(signal.SIGKILL)
    second, third = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(second.line("alice@x"))
    node.log.rename(node.log.with_suffix(".log.1"))
    node.write(third.line("carol@x"))
    node.start()
    eventually(lambda: node.mark(second) and node.mark(third))
    assert node.mark(second) == node.mark(first) == before
    assert node.mark(third) != before


def test_what_changed_while_no_agent_ran_holds_after_a_backlog(node: Node) -> None:
    """Marks go first, but not before classes that others have deleted, and limits follow."""
    node.start()
    alice, bob = user(node, "alice@x"), user(node, "bob@x")
    assert ceils(node, alice) == (5_000_000, 10_000_000)
    node.stop(signal.SIGKILL)
    node.write_policy("users:\n  alice@x: {upload: 7mbit, download: 8mbit}\n")
    minor = (node.mark(bob) or 0) & 0xFFFF
    run("tc", "class", "del", "dev", "wan0", "classid", f"5100:{minor:x}")
    # More than is read at once.
    node.write(*[alice.line("alice@x")] * 4_000)
    late = Client("127.0.0.1", 4430)
    node.write(late.line("carol@x"))
    node.start()
    eventually(lambda: node.mark(late))
    eventually(lambda: ceils(node, bob) == (2_000_000, 3_000_000))
    eventually(lambda: ceils(node, alice) == (7_000_000, 8_000_000))


def test_lines_are_replayed_whatever_their_stamps_say(node: Node) -> None:
    """Zone and clock of the engine are unknown; a stamp makes no line old."""
    client = Client("127.0.0.1", 4430)
    old = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(time.time() - 120)).encode()
    node.write(old + client.line("alice@x")[19:])
    fresh = Client("127.0.0.1", 4430)
    node.write(fresh.line("bob@x"))
    node.start()
    eventually(lambda: node.mark(fresh) and node.mark(client))
    assert node.mark(client) != node.mark(fresh)


def test_a_rotated_log_loses_no_line(node: Node) -> None:
    node.start()
    clients = [Client("127.0.0.1", 4430) for _ in range(30)]
    for number, client in enumerate(clients):
        if number % 10 == 5:
            held = node.log.open("ab")
            node.log.rename(node.log.with_suffix(f".log.{number}"))
        if number % 10 == 6:
            # The engine goes on writing to the renamed file for a while.
            held.write(client.line("alice@x"))
            held.close()
        else:
            node.write(client.line("alice@x"))
    eventually(lambda: all(node.mark(client) for client in clients))


def test_a_truncated_log_is_read_from_its_start(node: Node) -> None:
    node.start()
    first, second = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(first.line("alice@x") * 3)
    eventually(lambda: node.mark(first))
    os.truncate(node.log, 0)
    time.sleep(1.2)
    node.write(second.line("alice@x"))
    eventually(lambda: node.mark(second))


def test_two_users_on_one_flow_are_restricted_to_the_lower_limit(node: Node) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    alice = node.mark(client)
    node.write(client.line("mallory@x"))
    eventually(lambda: node.mark(client) != alice)
    restricted = node.mark(client) or 0
    up, down = node.classes()
    assert (up[restricted & 0xFFFF], down[restricted & 0xFFFF]) == (2_000_000, 3_000_000)
    node.write(client.line("alice@x"), client.line("mallory@x"))
    time.sleep(0.2)
    assert node.mark(client) == restricted


def test_a_forged_line_after_a_rejected_one_does_not_relabel_a_flow(node: Node) -> None:
    node.start()
    mallory, control = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    now = time.strftime("%Y/%m/%d %H:%M:%S").encode()
    rejected = now + (
        b".000001 from 127.0.0.1:1 rejected  proxy/trojan: failed to read address and port > "
        b"common/protocol: invalid domain name: a\n"
    )
    harmless = now + b".000001 from 127.0.0.1:1 rejected  proxy/trojan: not a valid user\n"
    node.write(rejected, mallory.line("alice@x"), harmless * 40, control.line("alice@x"))
    eventually(lambda: node.mark(control) and node.mark(mallory))
    assert node.mark(mallory) != node.mark(control)
    node.write(mallory.line("mallory@x"))
    eventually(lambda: look(node, "--json")[1].count("mallory@x"))


def test_hostile_lines_do_not_stop_the_agent(node: Node) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(b"x" * 70_000 + b"\n", b"\0" * 500 + b"\n", b"\xff\xfe\n" * 50, b"no newline")
    node.write(b"\n" + b"." * 3000 + b"\n")
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))


def test_a_new_policy_changes_open_flows_in_place(node: Node) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    mark = node.mark(client) or 0
    node.write_policy("users:\n  alice@x: {upload: 7mbit, download: 8mbit}\n")
    eventually(lambda: node.classes()[0].get(mark & 0xFFFF) == 7_000_000)
    assert node.classes()[1][mark & 0xFFFF] == 8_000_000
    node.write_policy("users:\n  alice@x: {upload: 7 parsecs}\n")
    time.sleep(1.3)
    assert node.classes()[0][mark & 0xFFFF] == 7_000_000
    assert node.mark(client) == mark


def test_flows_are_found_among_more_ends_than_can_be_asked_for(node: Node) -> None:
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text().replace("[4430]", '["4000-5000"]'))
    node.start()
    first = [Client("127.0.0.1", 4430) for _ in range(3)]
    node.write(*(client.line("alice@x") for client in first))
    time.sleep(0.2)
    # Their inbound has another tag, so that nothing is known about it when the walk is over.
    second = [Client("::1", 4430) for _ in range(3)]
    node.write(*(client.line("bob@x").replace(b"[in >>", b"[six >>") for client in second))
    eventually(lambda: all(node.mark(client) for client in (*first, *second)), 4)


@pytest.mark.parametrize("idle_s", [0.0, 2.2])
def test_flows_are_marked_again_when_the_conntrack_table_is_flushed(
    node: Node, idle_s: float
) -> None:
    node.start()
    clients = [Client("127.0.0.1", 4430) for _ in range(8)]
    node.write(*(client.line("alice@x") for client in clients))
    eventually(lambda: all(node.mark(client) for client in clients))
    mark = node.mark(clients[0])
    time.sleep(idle_s)  # the agent looks at fewer flows when none is new
    run("conntrack", "-F")
    for client in clients[:6]:
        client.sock.send(b"alive")
    eventually(lambda: {node.mark(client) for client in clients[:6]} == {mark}, 2.0)
    for client in clients[6:]:
        client.sock.send(b"awake again")
    eventually(lambda: {node.mark(client) for client in clients[6:]} == {mark}, 7.0)


def test_a_flush_is_noticed_after_many_new_flows(node: Node) -> None:
    node.start()
    old = [Client("127.0.0.1", 4430) for _ in range(6)]
    node.write(*(client.line("alice@x") for client in old))
    eventually(lambda: all(node.mark(client) for client in old))
    time.sleep(1.1)  # the agent has looked once: these are not new to it
    run("conntrack", "-F")
    young = [Client("127.0.0.1", 4430) for _ in range(40)]
    node.write(*(client.line("bob@x") for client in young))
    for client in old:
        client.sock.send(b"alive")
    eventually(lambda: all(node.mark(client) for client in (*old, *young)), 2.0)


def test_suspend_lifts_every_limit_and_resume_brings_them_back(node: Node) -> None:
    node.start()
    clients = [Client("127.0.0.1", 4430) for _ in range(5)]
    node.write(*(client.line("alice@x") for client in clients))
    eventually(lambda: all(node.mark(client) for client in clients))
    mark = node.mark(clients[0])
    assert "5 flows" in node.run("suspend")
    assert {node.mark(client) for client in clients} == {0}
    while_suspended = Client("127.0.0.1", 4430)
    node.write(while_suspended.line("alice@x"))
    time.sleep(0.3)
    assert node.mark(while_suspended) == 0
    assert node.run("suspend") == "no change\n"
    clients[0].sock.close()
    from vff_qos.commands.killswitch import resume
    from vff_qos.journal import Journal
    from vff_qos.lock import Lock

    resume(State(str(node.directory / "state")), Lock(str(node.directory / "run")), Journal())
    assert {node.mark(client) for client in clients[1:]} == {mark}
    node.stop()
    node.start()
    eventually(lambda: node.mark(while_suspended) == mark)


def test_gc_takes_the_idle_and_leaves_the_living(node: Node) -> None:
    node.start()
    closed, living, active = (Client("127.0.0.1", 4430) for _ in range(3))
    node.write(closed.line("idle@x"), living.line("flow@x"), active.line("active@x"))
    eventually(lambda: all(node.mark(client) for client in (closed, living, active)))
    node.stop()
    minors = {
        name: (node.mark(client) or 0) & 0xFFFF
        for name, client in (("idle@x", closed), ("flow@x", living), ("active@x", active))
    }
    run("conntrack", "-D", "-p", "tcp", "--orig-src", "127.0.0.1", "--sport", str(closed.port))
    run("conntrack", "-D", "-p", "tcp", "--orig-src", "127.0.0.1", "--sport", str(active.port))
    state = State(str(node.directory / "state"))
    owners = state.owners()
    for owner in owners:
        owner.moved -= 7200
        owner.since -= 7200
        if owner.key == "active@x":
            owner.up_seen = 1
    state.save_owners(owners)
    run(
        "tc",
        "filter",
        "add",
        "dev",
        "wan0",
        "parent",
        "5100:",
        "pref",
        "7",
        "protocol",
        "ip",
        "u32",
        "match",
        "u32",
        "0",
        "0",
        "flowid",
        "5100:abc",
    )
    plan = node.run("gc", "--dry-run")
    assert "park idle@x" in plan
    assert "flow@x" not in plan
    assert "active@x" not in plan
    assert "pref 7" in plan
    assert run("tc", "filter", "show", "dev", "wan0", "parent", "5100:")
    assert node.run("gc") == plan
    after = {owner.key: owner for owner in state.owners()}
    assert after["idle@x"].state == PARKED
    assert after["flow@x"].state == after["active@x"].state == "active"
    assert not run("tc", "filter", "show", "dev", "wan0", "parent", "5100:").strip()
    shown = run("tc", "class", "show", "dev", "wan0")
    assert f"5100:{minors['idle@x']:x} parent 5100:1 leaf {minors['idle@x']:x}: prio 7" in shown
    assert node.run("gc") == "no change\n"
    # The next new user takes the parked class.
    node.start()
    new = Client("127.0.0.1", 4430)
    node.write(new.line("new@x"))
    eventually(lambda: node.mark(new))
    assert (node.mark(new) or 0) & 0xFFFF == minors["idle@x"]


def test_gc_deletes_above_the_pool(node: Node) -> None:
    node.start()
    clients = [Client("127.0.0.1", 4430) for _ in range(8)]
    node.write(*(client.line(f"u{n}@x") for n, client in enumerate(clients)))
    eventually(lambda: all(node.mark(client) for client in clients))
    node.stop()
    run("conntrack", "-F")
    state = State(str(node.directory / "state"))
    owners = state.owners()
    for owner in owners:
        owner.moved -= 7200
    state.save_owners(owners)
    assert node.run("gc").count("delete ") == 4
    up, down = node.classes()
    assert len(up) == len(down) == 2 + 4
    assert len(state.owners()) == 4


def test_a_full_disk_stops_nobody_and_nothing_is_lost(node: Node) -> None:
    with small_disk(node.directory / "state"):
        node.start()
        ballast = fill(node.directory / "state")
        clients = {f"user{n}@x": Client("127.0.0.1", 4430) for n in range(200)}
        node.write(*(client.line(email) for email, client in clients.items()))
        eventually(lambda: all(map(node.mark, clients.values())))
        marks = {email: node.mark(client) for email, client in clients.items()}
        assert set(node.classes()[1]) >= {(mark or 0) & 0xFFFF for mark in marks.values()}
        eventually(lambda: "database or disk is full; " in status(node)["follower"]["state"])
        ballast.unlink()
        eventually(lambda: "user199@x" in look(node, "--all")[1], 10)
        assert node.agent is not None
        node.agent.terminate()
        _output, errors = node.agent.communicate(timeout=10)
        assert "database or disk is full; " in errors
        # Whoever was new meanwhile has the same class after a restart.
        node.start()
        assert {e: node.mark(client) for e, client in clients.items()} == marks
        again = Client("127.0.0.1", 4430)
        node.write(again.line("user199@x"))
        eventually(lambda: node.mark(again) == marks["user199@x"])
        node.stop()


def test_a_silent_agent_reads_nothing_and_still_ends_orders_in_time(node: Node) -> None:
    def reads() -> int:
        assert node.agent is not None
        text = Path(f"/proc/{node.agent.pid}/io").read_text()
        return int(dict(line.split(": ") for line in text.splitlines())["syscr"])

    def is_silent() -> bool:
        """Between two reports, which come each 5 s."""
        before = reads()
        time.sleep(2.2)
        return reads() == before

    node.start()
    alice = user(node, "alice@x")
    eventually(is_silent, 40)
    node.run("limit", "alice@x", "--download", "1mbit", "--for", "2s")
    assert ceils(node, alice)[1] == 1_000_000
    eventually(lambda: ceils(node, alice)[1] == 10_000_000)
    node.write(alice.line("alice@x"))
    bob = user(node, "bob@x")
    assert ceils(node, bob)[1] == 3_000_000


def test_status_tells_who_has_what(node: Node) -> None:
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    found = status(node)
    (user,) = found["users"]
    assert (user["email"], user["upload_bps"], user["flows"]) == ("alice@x", 5_000_000, 1)
    assert "alice@x" in look(node)[1]
