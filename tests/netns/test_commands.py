"""What commands ask, say and write into the journal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess

import pytest

from vff_qos.commands.limit import give_order
from vff_qos.commands.node import Node as CommandNode
from vff_qos.config import Paths
from vff_qos.core.events import JournalEvent
from vff_qos.journal import Journal, Value
from vff_qos.state import State

from .harness import Node, ceils, eventually, look, run, user

# -- a change that touches everybody --------------------------------------------------------------

FASTER = "default: {upload: 4mbit, download: 6mbit}\n"


def crowd(node: Node, count: int) -> None:
    """Users of the default, who all have a class."""
    node.start()
    clients = [user(node, f"user{number}@x") for number in range(count)]
    assert {ceils(node, client) for client in clients} == {(2_000_000, 3_000_000)}


def limits(node: Node) -> set[int]:
    """Upload limits of the users' classes."""
    return set(node.classes()[0].values()) - {100_000_000_000}


def apply(node: Node, *words: str, **more: int) -> subprocess.CompletedProcess[str]:
    new = node.directory / "new.yml"
    new.write_text(FASTER)
    return subprocess.run(
        node.command("policy", "apply", str(new), *words),
        stdout=subprocess.PIPE,
        stdin=more.get("terminal", subprocess.DEVNULL),
        stderr=more.get("terminal", subprocess.PIPE),
        text=True,
        check=False,
    )


def test_a_change_of_most_users_wants_a_second_look(node: Node) -> None:
    crowd(node, 12)
    before = (node.directory / "policy.yml").read_text()
    done = apply(node)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vff-qos policy: this changes the limits of 12 of 12 users with a class; look at "
        "'vff-qos policy diff', then say --yes\n"
    )
    assert (node.directory / "policy.yml").read_text() == before
    assert limits(node) == {2_000_000}
    done = apply(node, "--yes")
    assert done.stdout == "12 of 12 users' classes changed\n"
    assert limits(node) == {4_000_000}


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 2), ("n\n", 2)])
def test_at_a_terminal_it_asks(node: Node, answer: str, code: int) -> None:
    crowd(node, 12)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = apply(node, terminal=theirs)
    assert done.returncode == code
    assert b"Go on? [y/N] " in os.read(ours, 4_096)
    assert limits(node) == {4_000_000 if code == 0 else 2_000_000}
    os.close(ours)
    os.close(theirs)


def test_a_few_users_and_the_smaller_part_need_none(node: Node) -> None:
    crowd(node, 9)
    assert apply(node).returncode == 0
    # Fewer than half of more.
    names = [f"user{number}@x" for number in range(13)]
    (node.directory / "policy.d").mkdir()
    (node.directory / "policy.d" / "own.yml").write_text(
        json.dumps({"users": {name: {"upload": "9mbit"} for name in names}})
    )
    for name in (*names[9:], *(f"other{number}@x" for number in range(13))):
        user(node, name)
    (node.directory / "policy.d" / "own.yml").unlink()
    assert node.run("policy", "apply").endswith("of 26 users' classes changed\n")


# -- words ----------------------------------------------------------------------------------------


class Heard(Journal):
    """A journal that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, dict[str, Value]]] = []

    def _write(self, event: JournalEvent, message: str, fields: dict[str, Value]) -> None:
        self.events.append((event.name, message, fields))


def test_the_journal_tells_an_end_from_a_beginning(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "carol")
    directory = str(node.directory)
    paths = Paths(
        f"{directory}/settings.yml", f"{directory}/policy.yml", f"{directory}/policy.d",
        f"{directory}/state", f"{directory}/run",
    )  # fmt: skip
    with CommandNode(paths) as opened:
        opened.journal = heard = Heard()
        give_order(opened, "alice@x", {"download": "1mbit"}, 3600, "slow")
        give_order(opened, "alice@x", None, None, "enough")
        give_order(opened, "alice@x", None)
    assert [(kind, fields["who"]) for kind, _text, fields in heard.events] == [
        ("override", "carol"),
        ("override_ended", "carol"),
    ]
    assert heard.events[0][1].startswith("carol ordered for alice@x: upload 5mbit, download 1mbit")
    assert heard.events[1][1] == (
        "alice@x: the override by carol is over: carol has ended it (enough); now upload 5mbit, "
        "download 10mbit"
    )


def test_status_and_journal_name_the_same_author(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "carol")
    node.start()
    node.run("limit", "alice@x", "--download", "1mbit", "--for", "1h")
    assert "by carol\n" in look(node)[1]
    node.run("limit", "alice@x", "--download", "1mbit", "--for", "1s")
    assert node.agent is not None and node.agent.stderr is not None
    assert node.agent.stderr.readline() == (
        "alice@x: the override by carol is over: its time is up; now upload 5mbit, download "
        "10mbit\n"
    )


def test_explain_names_the_plan_that_decides(node: Node) -> None:
    node.write_policy(
        "plans:\n  pro: {upload: 9mbit}\n  trial: {upload: 1mbit}\nusers:\n  alice@x: {plan: pro}\n"
    )
    assert "decided by: user alice@x, plan pro\n" in node.run("explain", "alice@x")
    node.run("limit", "alice@x", "--upload", "3mbit")
    said = node.run("explain", "alice@x")
    assert "decided by: a temporary override, above user alice@x, plan pro\n" in said
    node.run("limit", "alice@x", "--plan", "trial")
    said = node.run("explain", "alice@x")
    assert "decided by: a temporary override, plan trial\n" in said
    assert json.loads(node.run("explain", "alice@x", "--json"))["plans"] == ["trial"]


def test_unlimited_is_a_word_and_so_is_a_class_that_is_gone(node: Node) -> None:
    node.write_policy("users:\n  alice@x: {unlimited: true}\n")
    node.start()
    user(node, "alice@x")
    bob = user(node, "bob@x")
    row = next(line for line in look(node)[1].splitlines() if line.startswith("alice@x"))
    assert row.split()[2:4] == ["unlimited", "unlimited"]
    assert "limit unlimited, guaranteed" in node.run("explain", "alice@x")
    minor = f"{(node.mark(bob) or 0) & 0xFFFF:x}"
    node.stop(signal.SIGKILL)
    run("tc", "class", "del", "dev", "wan0", "classid", f"5100:{minor}")
    said = look(node)[1]
    (line,) = [line for line in said.splitlines() if line.startswith("DEGRADED: without a class")]
    assert line.endswith(": bob@x")
    row = next(line for line in said.splitlines() if line.startswith("bob@x"))
    assert row.split()[2:5] == ["2mbit", "no", "class"]
    run("conntrack", "-D", "-p", "tcp", "--orig-src", "127.0.0.1", "--sport", str(bob.port))
    said = look(node)[1]
    assert "no class: 1 users get theirs with their next connection" in said
    assert "DEGRADED: without a class" not in said


def test_the_end_of_a_suspension_is_named_as_it_is(node: Node) -> None:
    node.run("suspend")
    assert "DEGRADED: suspended by hand: nobody is limited" in look(node)[1]
    State(str(node.directory / "state")).set_value("suspended", None)
    node.start()
    eventually(lambda: "suspended" not in look(node)[1])
