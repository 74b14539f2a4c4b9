"""Accounts with real bytes through real classes, whatever becomes of classes and agents."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
import subprocess
from typing import Any

import pytest

from vff_qos.commands.books import book_now
from vff_qos.commands.node import Node as OpenNode
from vff_qos.config import Paths
from vff_qos.kernel.packed.tc import ClassKey, Tc, delete_class
from vff_qos.state import KERNEL_RECORD, State

from .harness import MAJOR, WAN, Client, Node, eventually, run, user
from .senders import Flood, send_through

FRAME = len(Flood.FRAME)
DEVICES = ("vffqos0", WAN)


def usage(node: Node, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.run("usage", "--json", *words))
    return found


def moved(node: Node) -> dict[str, tuple[int, int]]:
    """{user: bytes (up, down)} of all that was booked."""
    found = usage(node)
    everybody = [*found["users"], *found["others"]]
    return {one["email"]: (one["upload_bytes"], one["download_bytes"]) for one in everybody}


def minor_of(node: Node, client: Client) -> int:
    return (node.mark(client) or 0) & 0xFFFF


def send(minor: int, up: int = 0, down: int = 0) -> None:
    """So many packets of a user, and wait until the class has sent them."""
    tc = Tc()
    indices = [socket.if_nametoindex(device) for device in DEVICES]

    def sent() -> list[int]:
        return [tc.sent_bytes(index, MAJOR).get(minor, 0) for index in indices]

    before = sent()
    for device, count in zip(DEVICES, (up, down), strict=True):
        send_through(device, minor, count)
    wanted = [b + n * FRAME for b, n in zip(before, (up, down), strict=True)]
    # What the devices say of themselves (IPv6) is nobody's.
    eventually(lambda: all(now >= want for now, want in zip(sent(), wanted, strict=True)))
    tc.close()


def delete(minor: int, devices: tuple[str, ...] = DEVICES) -> None:
    """Take a user's class away, as other software would."""
    tc = Tc()
    keys = [ClassKey(socket.if_nametoindex(device), MAJOR, minor) for device in devices]
    tc.apply([delete_class(key) for key in keys])
    tc.close()


def test_a_restart_and_a_kill_lose_nothing(node: Node) -> None:
    node.start()
    alice = minor_of(node, user(node, "alice@x"))
    send(alice, up=10, down=20)
    node.stop()
    # Its end has booked it.
    assert moved(node)["alice@x"] == (10 * FRAME, 20 * FRAME)
    send(alice, up=1, down=2)
    node.start()
    eventually(lambda: moved(node)["alice@x"] == (11 * FRAME, 22 * FRAME))
    send(alice, up=100, down=200)
    node.stop(signal.SIGKILL)
    send(alice, up=1, down=1)
    assert moved(node)["alice@x"] == (11 * FRAME, 22 * FRAME)
    node.start()
    eventually(lambda: moved(node)["alice@x"] == (112 * FRAME, 223 * FRAME))


def test_a_class_that_goes_to_another_user_takes_no_bytes_along(node: Node) -> None:
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text().replace("gc_idle_sec: 3600", "gc_idle_sec: 1"))
    node.start()
    client = user(node, "alice@x")
    alice = minor_of(node, client)
    send(alice, up=10, down=20)
    node.stop(signal.SIGKILL)  # it has read none of it
    client.sock.close()
    run("conntrack", "-F")

    def collected() -> bool:
        return "park alice@x" in node.run("gc")

    eventually(collected, 60)  # each look waits for an agent that may be starting
    node.start()
    bob = minor_of(node, user(node, "bob@x"))
    assert bob == alice
    send(bob, up=1, down=2)
    node.stop()
    assert moved(node)["alice@x"] == (10 * FRAME, 20 * FRAME)
    assert moved(node)["bob@x"] == (1 * FRAME, 2 * FRAME)


def test_the_gc_deletes_a_class_and_the_next_one_counts_from_zero(node: Node) -> None:
    settings = node.directory / "settings.yml"
    text = settings.read_text().replace("gc_idle_sec: 3600", "gc_idle_sec: 1")
    settings.write_text(text.replace("gc_pool_max: 4", "gc_pool_max: 0"))
    node.start()
    client = user(node, "alice@x")
    send(minor_of(node, client), down=5)
    client.sock.close()

    def collected() -> bool:
        run("conntrack", "-F")  # the server's end is not closed, and says so now and then
        return "delete alice@x" in node.run("gc")

    eventually(collected, 10)
    again = minor_of(node, user(node, "alice@x"))
    send(again, down=7)  # more than before: only whoever deleted it knows that it is a new one
    node.stop()
    assert moved(node)["alice@x"] == (0, 12 * FRAME)


@pytest.mark.parametrize("devices", [DEVICES, (WAN,)])
def test_a_class_that_others_delete_is_counted_from_zero_again(
    node: Node, devices: tuple[str, ...]
) -> None:
    node.start()
    client = user(node, "alice@x")
    alice = minor_of(node, client)
    send(alice, up=5, down=5)
    node.stop()
    node.start()
    eventually(lambda: moved(node)["alice@x"] == (5 * FRAME, 5 * FRAME))
    node.stop(signal.SIGKILL)
    delete(alice, devices)
    node.start()  # its first look finds the class missing, and makes it
    eventually(lambda: all(alice in classes for classes in node.classes()))
    send(alice, up=6, down=6)
    node.stop()
    assert moved(node)["alice@x"] == (11 * FRAME, 11 * FRAME)


def test_a_class_that_is_found_missing_when_it_is_changed(node: Node) -> None:
    """Nothing is repaired here: the next claim makes it."""
    node.start()
    alice = minor_of(node, user(node, "alice@x"))
    send(alice, down=5)
    node.stop()
    node.start()
    eventually(lambda: moved(node)["alice@x"] == (0, 5 * FRAME))
    delete(alice)
    node.write_policy("users:\n  alice@x: {upload: 6mbit, download: 11mbit}\n")

    def made() -> bool:
        user(node, "alice@x")
        return node.classes()[1].get(alice) == 11_000_000

    eventually(made)
    send(alice, down=9)
    node.stop()
    assert moved(node)["alice@x"] == (0, 14 * FRAME)


def test_the_kill_switch_loses_nothing(node: Node) -> None:
    node.start()
    alice = minor_of(node, user(node, "alice@x"))
    send(alice, up=3, down=4)
    node.run("suspend")
    assert node.agent is not None
    node.agent.wait(timeout=10)
    assert moved(node)["alice@x"] == (3 * FRAME, 4 * FRAME)
    node.agent = None


def test_a_state_that_is_lost_bills_nobody_twice(node: Node) -> None:
    """The classes' counters outlive it: nobody knows what of them was booked."""
    node.start()
    alice = minor_of(node, user(node, "alice@x"))
    send(alice, down=50)
    node.stop()
    for file in (node.directory / "state").iterdir():
        file.unlink()
    node.start()
    again = minor_of(node, user(node, "alice@x"))
    send(again, down=3)
    node.stop()
    assert moved(node)["alice@x"] == (0, 3 * FRAME)


def test_traffic_of_nobody_is_nobodys(node: Node) -> None:
    node.start()
    send(0xFFFE, down=6)
    node.stop()
    found = usage(node)
    assert found["users"] == []
    (other,) = found["others"]
    assert (other["email"], other["download_bytes"] >= 6 * FRAME) == ("(nobody's)", True)


# -- the command ----------------------------------------------------------------------------------


def test_usage_is_a_table_a_csv_and_json(node: Node) -> None:
    node.start()
    for number, email in enumerate(("user10@x", "user2@x"), 1):
        send(minor_of(node, user(node, email)), up=number, down=10 * number)
    node.stop()
    head, columns, *rows = node.run("usage").splitlines()
    assert head.startswith("usage from ") and "counted until " in head
    assert columns.split() == ["user", "upload", "download", "total"]
    assert [row.split()[0] for row in rows[:2]] == ["user2@x", "user10@x"]
    assert rows[0].split()[1:] == ["3.03", "kB", "30.3", "kB", "33.3", "kB"]
    assert rows[-1].startswith("all 2 users")
    table = list(csv.DictReader(io.StringIO(node.run("usage", "--by", "hour", "--csv", "user1*"))))
    assert [row["user"] for row in table] == ["user10@x"]
    assert (table[0]["upload_bytes"], table[0]["download_bytes"]) == (f"{FRAME}", f"{10 * FRAME}")
    for by in ("hour", "day", "month"):
        (one,) = usage(node, "user2@x", "--by", by, "--since", "2h")["users"]
        assert sum(span["download_bytes"] for span in one["spans"]) == 20 * FRAME
    assert usage(node, "--since", "2019-01", "--until", "2020-01")["users"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nobody@x"], "vff-qos usage: nothing was ever counted for 'nobody@x'\n"),
        (["--since", "2026-02-30"], "vff-qos usage: --since: '2026-02-30' is no such day or hour"),
        (["--since", "soon"], "vff-qos usage: --since: 'soon' is not a time; allowed: 2026-11"),
        (["--until", "2019-01-01"], "vff-qos usage: --since is not before --until: 20"),
        (["--by", "week"], "vff-qos usage: --by: invalid choice: 'week' (choose from"),
        (["--csv", "--json"], "vff-qos usage: --json: not allowed with argument --csv"),
        ([""], "vff-qos usage: '' must be 1 to 320 bytes of printable text\n"),
        (["--since", "99d", "--by", "hour"], "vff-qos usage: hours are kept for 31 days: --since"),
    ],
)
def test_bad_input_gets_one_line(node: Node, words: list[str], sentence: str) -> None:
    done = subprocess.run(node.command("usage", *words), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_a_tree_that_is_taken_away_on_purpose_is_booked_before(node: Node) -> None:
    """By ``remove``, without an agent, and under the handle that the tree has."""
    node.start()
    alice = minor_of(node, user(node, "alice@x"))
    node.stop(signal.SIGKILL)
    send(alice, up=2, down=3)
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "handle: '42'\n")
    state = State(str(node.directory / "state"))
    state.set_value(KERNEL_RECORD, {"major": MAJOR})
    state.close()
    paths = Paths(
        str(settings), str(node.directory / "policy.yml"), "",
        str(node.directory / "state"), str(node.directory / "run"),
    )  # fmt: skip
    with OpenNode(paths) as opened:
        book_now(opened, opened.settings)
    assert moved(node)["alice@x"] == (2 * FRAME, 3 * FRAME)


def test_accounts_go_on_under_hashes(node: Node) -> None:
    """Who must not keep names keeps what they have moved, and asks by the email."""
    node.start()
    send(minor_of(node, user(node, "alice@x")), down=4)
    node.stop()
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "hash_emails: true\n")
    node.agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
    assert node.agent.stderr is not None
    while "follows" not in (line := node.agent.stderr.readline()):
        assert line  # it tells of the names first
    send(minor_of(node, user(node, "alice@x")), down=3)
    node.stop()
    (one,) = usage(node, "alice@x")["users"]
    assert one["download_bytes"] == 7 * FRAME
    assert "alice@x" not in json.dumps(usage(node))
    assert "alice@x" not in node.run("reset", "alice@x", "--usage")
