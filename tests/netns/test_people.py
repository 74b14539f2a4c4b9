"""One person of several identities, with real flows: sources at once, a tunnel, an office."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.state import State

from .harness import Client, eventually, look, status
from .healing import WITHIN_S, WholeNode, plan_without_filters
from .senders import send_through
from .sources_node import SourcesNode
from .static_node import WithIdentities

STATIC = """
services:
  tunnel: {ports: [7000]}
  other: {ports: [7002]}
networks:
  office: {prefixes: [127.0.0.2]}
"""
ALICE = 'people: {alice: [alice@x, "webhook:alice", "second:al", "service:tunnel", %s]}\n'
PEOPLE = STATIC + ALICE % "network:office"
POLICY = """
users:
  alice: {upload: 5mbit, download: 10mbit}
  bob@x: {upload: 6mbit, download: 7mbit}
"""


class PeopleNode(WithIdentities, SourcesNode, WholeNode):
    """A node with two logs, a webhook, services and a network."""

    def __init__(self, directory: Path, identities: str = PEOPLE) -> None:
        (directory / "identities.yml").write_text(STATIC)
        super().__init__(directory)
        self.write_policy(POLICY)
        self.identify(identities)
        for port in (7000, 7002):
            self.listeners.append(socket.create_server(("127.0.0.1", port)))

    def owner(self, client: Client) -> str | None:
        """Who has the class that a flow is in, as the state says; None for nobody."""
        minor = (self.mark(client) or 0) & 0xFFFF
        state = State(str(self.directory / "state"))
        try:
            return next((o.key for o in state.owners() if o.minor == minor), None)
        finally:
            state.close()

    def everywhere(self) -> list[Client]:
        """A flow of each of alice's identities."""
        clients = [Client("127.0.0.1", 4430) for _ in range(3)]
        self.write(clients[0].line("alice@x"))
        self.post(clients[1], "alice")
        self.write_second(clients[2].line("al"))
        clients += [Client("127.0.0.1", 7000), self.from_office()]
        eventually(lambda: all(self.mark(client) for client in clients), WITHIN_S)
        return clients


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PeopleNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = PeopleNode(tmp_path)
    yield made
    made.stop()


def until(check: object) -> None:
    eventually(check, WITHIN_S)  # type: ignore[arg-type]


def users(node: PeopleNode) -> set[str]:
    """Whom ``status`` lists."""
    return {user["email"] for user in status(node)["users"]}


def test_a_person_of_all_sources_has_one_class_and_one_line(node: PeopleNode) -> None:
    node.start()
    clients = node.everywhere()
    bob = Client("127.0.0.1", 4430)
    node.post(bob, "bob@x")
    until(lambda: node.mark(bob))
    assert len({node.mark(client) for client in clients}) == 1
    assert node.mark(bob) != node.mark(clients[0])
    minor = (node.mark(clients[0]) or 0) & 0xFFFF
    up, down = node.classes()
    assert (up[minor], down[minor]) == (5_000_000, 10_000_000)
    assert users(node) >= {"alice", "webhook:bob@x"}
    assert not any("al" in name and name != "alice" for name in users(node))
    text = look(node)[1]
    assert "people: 1, joined of 5 identities" in text
    # What is asked of an identity is answered for the person, and said so.
    found = json.loads(node.run("explain", "webhook:alice", "--json"))
    assert (found["email"], found["asked"]) == ("alice", "webhook:alice")
    assert found["identities"] == [
        "alice@x", "network:office", "second:al", "service:tunnel", "webhook:alice",
    ]  # fmt: skip
    assert "one with: alice@x, network:office" in node.run("explain", "alice")
    assert node.run("limit", "service:tunnel", "--download", "1mbit").startswith("alice: ")
    assert node.classes()[1][minor] == 1_000_000
    node.run("reset", "alice@x")
    assert node.classes()[1][minor] == 10_000_000
    assert "alice" in node.run("top", "--once", "network:office")
    send_through("wan0", minor, 20)
    node.run("gc")
    rows = node.run("usage", "--csv", "second:al").splitlines()
    assert len(rows) == 2 and rows[1].startswith("alice,")


def watched(node: PeopleNode, clients: list[Client], check: object) -> None:
    """Until ``check`` holds no flow is ever without a class that limits it."""
    assert callable(check)
    deadline = time.monotonic() + WITHIN_S
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        up, down = node.classes()
        for client in clients:
            minor = (node.mark(client) or 0) & 0xFFFF
            assert minor and up.get(minor, 1 << 40) < 10**9 > down.get(minor, 1 << 40)


def tell(node: PeopleNode, text: str) -> None:
    """Others from now on, and the agent is told."""
    node.identify(text)
    assert node.agent is not None
    node.agent.send_signal(signal.SIGHUP)


def moved(node: PeopleNode, email: str) -> int:
    """What somebody has moved, as ``usage`` has it."""
    node.run("gc")  # which books what has passed
    rows = json.loads(node.run("usage", "--json", email))["users"]
    return sum(row["upload_bytes"] + row["download_bytes"] for row in rows)


def test_a_change_moves_open_flows_and_what_was_counted(node: PeopleNode) -> None:
    node.identify(STATIC)
    node.start()
    clients = node.everywhere()
    names = ["alice@x", "webhook:alice", "second:al", "service:tunnel", "network:office"]
    assert [node.owner(client) for client in clients] == names
    node.run("limit", "second:al", "--download", "4mbit", "--for", "1h")
    for client in clients:
        send_through("wan0", (node.mark(client) or 0) & 0xFFFF, 20)
    tell(node, PEOPLE)
    watched(node, clients, lambda: {node.owner(client) for client in clients} == {"alice"})
    assert len({node.mark(client) for client in clients}) == 1
    minor = (node.mark(clients[0]) or 0) & 0xFFFF
    # What was ordered of one of them holds for all.
    until(lambda: node.classes()[1][minor] == 4_000_000)
    assert users(node) & {"alice", *names} == {"alice"}
    # A known word and a new one mean the person.
    node.write(clients[0].line("alice@x"))
    node.post(again := Client("127.0.0.1", 4430), "alice")
    until(lambda: node.mark(again) == node.mark(clients[0]))
    assert node.mark(clients[0]) == node.mark(Client("127.0.0.1", 7000))
    # Twenty frames of 1,514 bytes of each; and they are counted once.
    assert 5 * 20 * 1_500 <= moved(node, "alice") == moved(node, "webhook:alice") < 5 * 20 * 1_600
    until(lambda: status(node)["follower"].get("people") == 1)


def test_who_is_split_off_follows_with_the_next_word(node: PeopleNode) -> None:
    node.start()
    clients = node.everywhere()
    person = node.mark(clients[0])
    tell(node, STATIC + "people: {alice: [alice@x]}\n")
    watched(node, clients, lambda: node.owner(clients[3]) == "service:tunnel")
    assert node.owner(clients[4]) == "network:office"
    # Until then it is in the person's class, and never without one.
    assert [node.owner(client) for client in clients[:3]] == ["alice"] * 3
    node.write(clients[0].line("alice@x"))
    node.post(clients[1], "alice")
    node.write_second(clients[2].line("al"))
    until(lambda: node.owner(clients[1]) == "webhook:alice")
    until(lambda: node.owner(clients[2]) == "second:al")
    assert node.mark(clients[0]) == person
    assert status(node)["follower"]["conflicts"] == 0
    # And back, in one step.
    tell(node, PEOPLE)
    watched(node, clients, lambda: {node.owner(client) for client in clients} == {"alice"})


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_change_while_no_agent_runs_is_made_at_the_start(node: PeopleNode, how: int) -> None:
    node.identify(STATIC)
    node.start()
    clients = node.everywhere()
    assert len({node.owner(client) for client in clients}) == 5
    node.stop(how)
    node.identify(PEOPLE)
    node.start()
    assert {node.owner(client) for client in clients} == {"alice"}
    node.stop(how)
    node.start()
    assert {node.owner(client) for client in clients} == {"alice"}
    # With a mistake in the file the last good people stay in force.
    node.identify(PEOPLE[:-2] + ", bob: [alice@x]}\n")
    node.stop(how)
    node.start()
    assert {node.owner(client) for client in clients} == {"alice"}


def test_the_kill_switch_lifts_and_brings_back_a_person(node: PeopleNode) -> None:
    node.start()
    clients = node.everywhere()
    mark = node.mark(clients[0])
    node.run("suspend")
    assert {node.mark(client) for client in clients} == {0}
    node.stop()
    node.run("bootstrap")
    node.start()
    until(lambda: node.mark(clients[3]) == node.mark(clients[4]) == mark)
    node.write(clients[0].line("alice@x"))
    node.post(clients[1], "alice")
    until(lambda: node.mark(clients[0]) == node.mark(clients[1]) == mark)


def test_text_takes_nothing_that_a_better_source_gave(node: PeopleNode) -> None:
    node.start()
    told, other = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.post(told, "alice")
    until(lambda: node.owner(told) == "alice")
    # A stranger's text, right before a line that names the person from where only the webhook has
    # named them: that lends the log nothing.
    refused = (
        b"2026/01/02 03:04:05.000001 [Info] [1] proxy/vless/inbound: connection ends > bad domain: "
        b"evil\n"
    )
    node.write(refused + told.line("bob@x") + other.line("alice@x"))
    until(lambda: node.mark(other))
    assert node.owner(told) == "alice"
    assert str(node.owner(other)).startswith("\x01")
    # A plain line of the log counts for what it always did.
    node.write(told.line("bob@x") * 200)
    third = Client("127.0.0.1", 4430)
    node.write(third.line("alice@x"))
    until(lambda: node.owner(third) == "alice")


def test_an_engines_flow_of_a_person_is_no_static_one(node: PeopleNode) -> None:
    """After a restart a word may correct a mark, but not one that the kernel gives by port."""
    node.start()
    clients = node.everywhere()
    node.stop()
    node.start()
    assert {node.owner(client) for client in clients} == {"alice"}
    node.post(clients[1], "bob@x")
    node.write(clients[4].line("bob@x"))
    until(lambda: node.owner(clients[1]) == "webhook:bob@x")
    assert node.owner(clients[4]) == node.owner(clients[3]) == "alice"


def test_a_mistake_changes_nothing_and_names_both(node: PeopleNode) -> None:
    node.start()
    client = node.everywhere()[0]
    tell(node, PEOPLE[:-2] + ", carol: [alice@x]}\n")
    until(lambda: status(node)["follower"]["identities_refused"])
    (finding,) = [f for f in status(node)["findings"] if f["kind"] == "identities"]
    assert "'alice@x' is an identity of both 'alice' and 'carol'" in finding["sentence"]
    assert node.owner(client) == "alice"
    node.identify(PEOPLE)
    node.write_policy(POLICY + "  webhook:alice: {download: 1mbit}\n")
    until(lambda: "people" in {f["kind"] for f in status(node)["findings"]})
    assert node.classes()[1][(node.mark(client) or 0) & 0xFFFF] == 10_000_000


def test_no_flow_is_ever_in_a_wrong_class(node: PeopleNode) -> None:
    """Any change of who is who, while the engines go on talking."""
    node.identify(STATIC)
    node.start()
    clients = node.everywhere()
    names = ["alice@x", "webhook:alice", "second:al", "service:tunnel", "network:office"]
    chance = random.Random(7)
    for _change in range(6):
        people: dict[str, list[str]] = {}
        for name in names:
            person = chance.choice(["p", "q", names[0], ""])
            if person and name != person:
                people.setdefault(person, []).append(name)
        if names[0] in people and any(names[0] in theirs for theirs in people.values()):
            del people[names[0]]
        meant = {name: person for person, theirs in people.items() for name in theirs}
        tell(node, f"{STATIC}people: {json.dumps(people)}\n")
        wanted = [meant.get(name, name) for name in names]

        def speak() -> list[str | None]:
            node.write(clients[0].line("alice@x"))
            node.write_second(clients[2].line("al"))
            node.post(clients[1], "alice")
            return [node.owner(client) for client in clients]

        watched(node, clients, lambda wanted=wanted, speak=speak: speak() == wanted)
    assert status(node)["follower"]["conflicts"] == 0


def test_names_of_people_are_hashes_where_names_are(node: PeopleNode) -> None:
    settings = node.directory / "settings.yml"
    node.start()
    clients = node.everywhere()
    person = node.mark(clients[0])
    node.stop()
    settings.write_text(settings.read_text() + "hash_emails: true\n")
    node.start()
    assert {node.mark(client) for client in clients} == {person}
    name = node.run("name", "second:al").strip()
    assert {node.owner(client) for client in clients} == {name}
    assert name == node.run("name", "alice").strip() and name.startswith("user-")
    up, down = node.classes()
    assert (up[(person or 0) & 0xFFFF], down[(person or 0) & 0xFFFF]) == (5_000_000, 10_000_000)
    assert json.loads(node.run("explain", "alice@x", "--json"))["email"] == name
    node.post(again := Client("127.0.0.1", 4430), "alice")
    until(lambda: node.mark(again) == person)
    # With the file as it is kept, the same.
    node.identify(PEOPLE[:-2] + ", carol: [alice@x]}\n")
    node.stop()
    node.start()
    node.post(once_more := Client("127.0.0.1", 4430), "alice")
    until(lambda: node.mark(once_more) == person)
    until(lambda: status(node)["follower"]["identities_refused"])
    told = node.told + json.dumps(status(node)["findings"])
    assert "carol" not in told and "alice" not in told
    node.stop()
    kept = [path for path in (node.directory / "state").iterdir() if path.name != "email.key"]
    assert kept and not any(b"alice@x" in path.read_bytes() for path in kept)
    assert not any(b"webhook:alice" in path.read_bytes() for path in kept)
