"""The agent where there is a tree for each queue."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vff_qos.kernel.packed.tc import Tc

from .harness import Client, root_of, run, status
from .healing import HealingNode, plan_without_filters
from .queues import lead_packets, use_queues


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealingNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path, "trees: 2\nwan_ceil: 10gbit\n", queues=2)
    yield made
    made.stop()


def users(node: HealingNode, *emails: str) -> list[Client]:
    """A live connection of each."""
    clients = [Client("127.0.0.1", 4430) for _email in emails]
    node.write(*(c.line(email) for c, email in zip(clients, emails, strict=True)))
    node.wait(lambda: all(map(node.mark, clients)))
    return clients


def is_right(node: HealingNode, client: Client, trees: int) -> bool:
    """Whether a connection's mark names a class that is there, in both trees of its queue."""
    mark = node.mark(client) or 0
    major, minor = mark >> 16, mark & 0xFFFF
    there = {name: index for index, name in socket.if_nameindex()}
    with closing(Tc()) as tc:
        return major == 0x5100 + minor % trees and all(
            device in there and minor in tc.params(there[device], major)
            for device in ("wan0", "vffqos0")
        )


def wait_for_trees(node: HealingNode, clients: list[Client], trees: int) -> None:
    node.wait(lambda: all(is_right(node, one, trees) for one in clients) and node.is_whole())


def test_users_are_spread_over_the_trees_and_each_has_one_class(node: HealingNode) -> None:
    clients = users(node, "alice@x", "bob@x", "carol@x", "carol@x")
    marks = [node.mark(client) or 0 for client in clients]
    assert all(is_right(node, client, 2) for client in clients)
    assert {mark >> 16 for mark in marks} == {0x5100, 0x5101}
    assert marks[2] == marks[3] and len(set(marks)) == 3
    found = status(node)
    assert (found["trees"], found["trees_why"]) == (2, "2 are asked for")
    shown = {one["email"]: one["class"] for one in found["users"]}
    assert shown["bob@x"] == f"{marks[1] >> 16:x}:{marks[1] & 0xFFFF:x}"
    assert "trees: 2 in each direction, because 2 are asked for" in node.run("status")
    assert shown["bob@x"] in node.run("explain", "bob@x")


def test_a_user_goes_to_the_tree_whose_users_may_use_the_least(node: HealingNode) -> None:
    policy = "users: {b0@x: {unlimited: true}, b1@x: {unlimited: true}}"
    (node.directory / "policy.d").mkdir(exist_ok=True)
    (node.directory / "policy.d" / "heavy.yml").write_text(policy)
    node.run("policy", "apply")
    heavy = users(node, "b0@x")
    small = users(node, *(f"small{number}@x" for number in range(4)))
    heavy += users(node, "b1@x")
    # Alice is in the first tree, so that the first heavy one is in the other; the small ones keep
    # away from it, and so does the second heavy one.
    everybody = [node.client, *heavy, *small]
    trees = [(node.mark(client) or 0) >> 16 for client in everybody]
    assert trees == [0x5100, 0x5101, 0x5100, *[0x5100] * 4]
    assert all(is_right(node, client, 2) for client in everybody)


def test_a_user_moves_where_trees_have_become_uneven(node: HealingNode) -> None:
    bob, carol = users(node, "bob@x", "carol@x")
    clients = [node.client, bob, carol]
    before = [node.mark(client) or 0 for client in clients]
    assert [mark >> 16 for mark in before] == [0x5100, 0x5101, 0x5101]
    (node.directory / "policy.d").mkdir(exist_ok=True)
    rates = {"alice@x": "10mbit", "bob@x": "500mbit", "carol@x": "400mbit"}
    entries = (f"{email}: {{upload: {r}, download: {r}}}" for email, r in rates.items())
    (node.directory / "policy.d" / "more.yml").write_text(f"users: {{{', '.join(entries)}}}")
    node.run("policy", "apply")
    node.wait(lambda: (node.mark(carol) or 0) >> 16 == 0x5100)
    after = node.mark(carol) or 0
    assert is_right(node, carol, 2)
    assert [node.mark(client) for client in clients[:2]] == before[:2]
    was, now = (f"{mark >> 16:x}:{mark & 0xFFFF:x}" for mark in (before[2], after))
    node.hears(f"carol@x has moved from class {was} to {now}, with 1 connections")
    # What is said of them later means the class of now, also after a restart.
    (another,) = users(node, "carol@x")
    assert node.mark(another) == after
    node.stop()
    node.start()
    (third,) = users(node, "carol@x")
    assert [node.mark(client) for client in (carol, another, third)] == [after] * 3
    shown = {one["email"]: one["class"] for one in status(node)["users"]}
    assert shown["carol@x"] == now


def apply(node: HealingNode, **rates: str) -> None:
    """Limits of users at x, in both directions."""
    (node.directory / "policy.d").mkdir(exist_ok=True)
    entries = (f"{name}@x: {{upload: {rate}, download: {rate}}}" for name, rate in rates.items())
    text = f"users: {{{', '.join(entries)}}}"
    (node.directory / "policy.d" / "rates.yml").write_text(text)
    node.run("policy", "apply")


def test_what_waits_for_a_user_who_moves_leaves_no_more(node: HealingNode) -> None:
    """Or the user would have the limits of two classes, for as long as it lasts."""
    _bob, carol = users(node, "bob@x", "carol@x")
    apply(node, alice="300kbit", bob="200kbit", carol="100kbit")
    before = node.mark(carol) or 0
    assert before >> 16 == 0x5101
    lead_packets("wan0")
    frame, count = bytes.fromhex("0200000000090200000000010800") + bytes(1_500), 500
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, before)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_000_000)
        sock.bind(("wan0", 0x0800))
        for _ in range(count):  # a minute of the limit
            sock.send(frame)

    def waiting() -> tuple[int, int]:
        with closing(Tc()) as tc:
            state = tc.classes(socket.if_nametoindex("wan0"), 0x5101, 1)[before & 0xFFFF]
        return state.backlog_bytes, state.sent_bytes

    assert waiting()[0] > 0
    apply(node, alice="50kbit", bob="200kbit", carol="100kbit")
    node.wait(lambda: (node.mark(carol) or 0) >> 16 == 0x5100)
    node.wait(lambda: waiting()[0] == 0)
    assert waiting()[1] < count * len(frame)
    assert is_right(node, carol, 2)


@pytest.mark.parametrize(
    "harm",
    [
        "tc qdisc del dev wan0 parent 51ff:1",
        "tc qdisc del dev wan0 parent 51ff:2",
        "tc qdisc del dev vffqos0 parent 51ff:2",
        "tc qdisc del dev wan0 root",
        "ip link del vffqos0",
        "tc class del dev wan0 classid {class_of_alice}",
    ],
)
def test_what_others_break_is_whole_again(node: HealingNode, harm: str) -> None:
    clients = [node.client, *users(node, "bob@x", "carol@x")]
    mark = node.mark(node.client) or 0
    run(*harm.format(class_of_alice=f"{mark >> 16:x}:{mark & 0xFFFF:x}").split())
    wait_for_trees(node, clients, 2)
    assert node.mark(node.client) == mark


def test_another_number_of_queues_takes_everybody_along(node: HealingNode) -> None:
    clients = [node.client, *users(node, "bob@x", "carol@x")]
    assert node.agent is not None
    for queues, root in ((1, "htb 5100:"), (2, "mq 51ff:")):
        use_queues("wan0", queues)
        wait_for_trees(node, clients, queues)
        assert root_of("wan0") == root_of("vffqos0") == root
        assert node.agent.poll() is None
        node.wait(lambda: status(node)["follower"] is not None)
        assert status(node)["trees"] == queues
    clients += users(node, "dave@x")
    node.wait(lambda: all(is_right(node, client, 2) for client in clients))
    node.hears("there are 1 trees instead of 2; the agent begins anew")
    assert os.path.exists(f"/proc/{node.agent.pid}")


def test_whoever_has_connections_has_a_class_before_the_agent_has_begun_anew(
    node: HealingNode,
) -> None:
    clients = [node.client, *users(node, "bob@x", "carol@x")]
    (away,) = users(node, "dave@x")
    minor = (node.mark(away) or 0) & 0xFFFF
    node.stop()
    away.sock.close()
    run("conntrack", "-D", "-p", "tcp", "--sport", str(away.port))
    for queues in (1, 2):
        use_queues("wan0", queues)
        said = node.run("bootstrap", "--repair")
        assert "add the classes of 3 users with live connections" in said
        assert all(is_right(node, client, queues) for client in clients)
        with closing(Tc()) as tc:
            assert minor not in tc.params(socket.if_nametoindex("wan0"), 0x5100, queues)
        assert "no change" in node.run("bootstrap", "--repair")
    node.start()
    wait_for_trees(node, clients, 2)


def test_a_ceiling_that_only_one_tree_can_share_takes_everybody_along(node: HealingNode) -> None:
    clients = [node.client, *users(node, "bob@x", "carol@x")]
    settings = node.directory / "settings.yml"
    many = settings.read_text()
    one = many.replace("trees: 2", "trees: auto").replace("wan_ceil: 10gbit", "wan_ceil: 20mbit")
    for text, root, trees in ((one, "tbf 5101:", 1), (many, "mq 51ff:", 2)):
        node.stop()
        settings.write_text(text)
        said = node.run("bootstrap")
        assert f"add the classes of {len(clients)} users with live connections" in said
        assert root_of("wan0") == root_of("vffqos0") == root
        assert all(is_right(node, client, trees) for client in clients)
        node.start()
        wait_for_trees(node, clients, trees)
        clients += users(node, f"new{trees}@x")
        assert all(is_right(node, client, trees) for client in clients)


def test_the_kill_switch_and_the_collector_know_every_tree(node: HealingNode) -> None:
    clients = [node.client, *users(node, "bob@x", "carol@x")]
    marks = [node.mark(client) for client in clients]
    settings = node.directory / "settings.yml"
    # Also where somebody has edited the file meanwhile.
    settings.write_text(settings.read_text().replace("trees: 2", "trees: 1"))
    node.run("suspend")
    assert [node.mark(client) for client in clients] == [0, 0, 0]
    settings.write_text(settings.read_text().replace("trees: 1", "trees: 2"))
    node.stop()
    node.run("bootstrap")
    assert [node.mark(client) for client in clients] == marks
    node.start()
    assert all(is_right(node, client, 2) for client in clients)
    node.stop()
    for client in clients:
        client.sock.close()
    run("conntrack", "-F")
    text = settings.read_text().replace("gc_pool_max: 4", "gc_pool_max: 0")
    settings.write_text(text.replace("gc_idle_sec: 3600", "gc_idle_sec: 1"))
    assert shown() != ""
    node.wait(lambda: node.run("gc") and shown() == "")


def shown() -> str:
    """Users' classes of the second tree."""
    return "\n".join(
        line
        for line in run("tc", "class", "show", "dev", "wan0").splitlines()
        if "parent 5101:1 " in line and "5101:fffe" not in line
    )
