"""Services and networks on a node with its agent: users like all others, without a line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.kernel.packed.conntrack import prepare

from .harness import Client, eventually, look, run, status
from .healing import WITHIN_S, WholeNode, plan_without_filters
from .senders import send_through
from .static_node import WithIdentities

FILE = """
services:
  web: {ports: [7000-7001], protocol: tcp}
  game: {ports: [7002], address: 127.0.0.1}
networks:
  office: {prefixes: [127.0.0.2]}
"""
POLICY = """
users:
  alice@x: {upload: 5mbit, download: 10mbit}
  service:web: {upload: 6mbit, download: 7mbit}
match:
  - {pattern: "network:*", upload: 8mbit, download: 9mbit}
"""


class StaticNode(WithIdentities, WholeNode):
    """A node with services, a network, and servers for them."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        (directory / "identities.yml").write_text(FILE)
        super().__init__(directory, settings)
        self.write_policy(POLICY)
        for port in (7000, 7002, 7010):
            listener = socket.create_server(("127.0.0.1", port))
            self.listeners.append(listener)

    def user_of(self, client: Client) -> str | None:
        """Whose class a flow is in, as ``status`` says."""
        mark = self.mark(client) or 0
        named = {user["class"]: str(user["email"]) for user in status(self)["users"]}
        return named.get(f"{mark >> 16:x}:{mark & 0xFFFF:x}")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StaticNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = StaticNode(tmp_path)
    made.start()
    yield made
    made.stop()


def until(check: object) -> None:
    eventually(check, WITHIN_S)  # type: ignore[arg-type]


def test_their_first_packet_has_the_mark_and_the_class_the_policys_limits(
    node: StaticNode,
) -> None:
    web, game, office = (
        Client("127.0.0.1", 7000), Client("127.0.0.1", 7002), node.from_office(),
    )  # fmt: skip
    marks = [node.mark(client) for client in (web, game, office)]
    assert all(mark and mark >> 16 == 0x5100 for mark in marks) and len(set(marks)) == 3
    assert node.mark(Client("127.0.0.1", 7010)) == 0
    up, down = node.classes()
    limits = [(up[(mark or 0) & 0xFFFF], down[(mark or 0) & 0xFFFF]) for mark in marks]
    assert limits == [(6_000_000, 7_000_000), (2_000_000, 3_000_000), (8_000_000, 9_000_000)]
    assert [node.user_of(c) for c in (web, game, office)] == [
        "service:web", "service:game", "network:office",
    ]  # fmt: skip
    _code, shown = look(node)
    assert "services and networks: 3 of 3 in force" in shown
    explained = node.run("explain", "service:web")
    assert "decided by: user service:web" in explained
    assert f"127.0.0.1:{web.port}" in explained and "without a line" not in explained
    assert "service:web" in node.run("top", "--once", "service:*")


def test_orders_and_usage_know_them(node: StaticNode) -> None:
    web = Client("127.0.0.1", 7000)
    node.run("limit", "service:web", "--download", "1mbit", "--for", "1h")
    minor = (node.mark(web) or 0) & 0xFFFF
    assert node.classes()[1][minor] == 1_000_000
    node.run("reset", "service:web")
    assert node.classes()[1][minor] == 7_000_000
    send_through("wan0", minor, 20)
    node.run("gc")  # which books what has passed
    rows = node.run("usage", "--csv", "service:*").splitlines()
    assert len(rows) == 2 and rows[1].startswith("service:web,")


def test_no_line_takes_their_flows_nor_their_class(node: StaticNode) -> None:
    """Whoever writes a log, an engine's user who is called as a service is somebody else."""
    office, other = node.from_office(), Client("127.0.0.1", 4430)
    before = node.mark(office)
    named = node.mark(Client("127.0.0.1", 7000))
    node.write(office.line("alice@x"), other.line("service:web"))
    until(lambda: node.mark(other))
    assert node.user_of(other) == "xray:service:web"
    assert node.mark(other) != named
    assert node.mark(office) == before and node.user_of(office) == "network:office"


def test_a_change_of_the_file_moves_open_flows(node: StaticNode) -> None:
    web, nobody = Client("127.0.0.1", 7000), Client("127.0.0.1", 7010)
    alice = node.from_office(7010)
    assert node.user_of(web) == "service:web"
    node.identify("services: {new: {ports: [7010]}, game: {ports: [7000]}}\n")
    until(lambda: node.user_of(web) == "service:game")
    until(lambda: node.user_of(nobody) == "service:new")
    assert node.user_of(alice) == "service:new"
    assert node.user_of(Client("127.0.0.1", 7010)) == "service:new"
    # 7002 is nobody's any more, and the office has no limit.
    assert node.mark(Client("127.0.0.1", 7002)) == 0
    assert node.mark(node.from_office()) == 0


def test_a_mistake_in_the_file_changes_nothing_and_is_told(node: StaticNode) -> None:
    node.identify(FILE + "  branch: {prefixes: [127.0.0.0/30]}\n")
    until(lambda: status(node)["follower"]["identities_refused"])
    (finding,) = [f for f in status(node)["findings"] if f["kind"] == "identities"]
    assert "network 'office' and network 'branch' both have 127.0.0.2" in finding["sentence"]
    checked = subprocess.run(node.command("check-config"), capture_output=True, text=True)
    assert checked.returncode == 2 and "identities.yml:6" in checked.stderr
    assert node.user_of(node.from_office()) == "network:office"
    # Nor does a restart, or a repair, forget what was good.
    node.stop()
    node.run("bootstrap", "--repair")
    node.agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
    assert node.agent.stderr is not None
    assert "identities.yml:6" in node.agent.stderr.readline()
    assert "follows" in node.agent.stderr.readline()
    assert node.user_of(node.from_office()) == "network:office"


def test_the_collector_never_takes_them(node: StaticNode) -> None:
    """The kernel gives their marks to whoever comes: an idle one must not become another user."""
    settings = node.directory / "settings.yml"
    node.stop()
    text = settings.read_text().replace("gc_idle_sec: 3600", "gc_idle_sec: 1")
    settings.write_text(text.replace("gc_pool_max: 4", "gc_pool_max: 0"))
    node.start()
    alice = Client("127.0.0.1", 4430)
    node.write(alice.line("alice@x"))
    until(lambda: node.mark(alice))
    alice.sock.close()

    def is_collected() -> bool:
        run("conntrack", "-F")  # the server's end is not closed, and says so now and then
        return "alice@x" in node.run("gc")

    until(is_collected)
    assert node.run("gc") == "no change\n"
    assert {user["email"] for user in status(node)["users"]} == {
        "service:web", "service:game", "network:office",
    }  # fmt: skip
    node.stop(signal.SIGKILL)
    web = Client("127.0.0.1", 7000)
    assert node.user_of(web) == "service:web"


def test_what_is_no_service_any_more_is_in_no_map_before_it_may_be_collected(
    node: StaticNode,
) -> None:
    """Also where the file went while no agent ran, and nobody has made the table anew."""
    node.stop()
    (node.directory / "identities.yml").unlink()
    assert node.run("gc") == "no change\n"
    before = node.mark(Client("127.0.0.1", 7000))
    assert before
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text().replace("gc_idle_sec: 3600", "gc_idle_sec: 1"))
    assert "park service:web" not in node.run("gc")
    node.start()
    assert node.mark(Client("127.0.0.1", 7000)) == 0
    run("conntrack", "-F")
    until(lambda: "service:web" in node.run("gc"))


def test_a_lost_table_is_healed_with_its_elements(node: StaticNode) -> None:
    before = node.mark(Client("127.0.0.1", 7000))
    run("nft", "delete", "table", "inet", "vff_qos")
    lost = Client("127.0.0.1", 7000)
    until(lambda: node.mark(lost) == before)  # it began without the table
    assert node.mark(Client("127.0.0.1", 7000)) == before


def test_the_kill_switch_and_its_way_back(node: StaticNode) -> None:
    web = Client("127.0.0.1", 7000)
    before = node.mark(web)
    node.run("suspend")
    assert node.agent is not None and node.agent.wait(10) == 0
    node.agent = None
    meanwhile = Client("127.0.0.1", 7000)
    assert node.mark(web) == node.mark(meanwhile) == 0
    node.run("bootstrap")
    assert node.mark(web) == before
    node.start()
    assert node.mark(meanwhile) == before
    assert node.mark(Client("127.0.0.1", 7000)) == before


def test_another_handle_takes_them_along(node: StaticNode) -> None:
    web = Client("127.0.0.1", 7000)
    minor = (node.mark(web) or 0) & 0xFFFF
    node.stop()
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "handle: '6200'\n")
    node.run("bootstrap")
    node.start()
    assert node.mark(web) == node.mark(Client("127.0.0.1", 7000)) == 0x6200_0000 | minor


def test_absent_leaves_nothing(node: StaticNode) -> None:
    web = Client("127.0.0.1", 7000)
    node.stop()
    node.run("remove")
    assert node.mark(web) == 0
    assert "vff_qos" not in run("nft", "list", "tables")
    assert node.mark(Client("127.0.0.1", 7000)) in (0, None)


def test_with_hashes_they_are_hashed_and_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = StaticNode(tmp_path, "hash_emails: true\n")
    node.start()
    try:
        _they_have_hashes(node)
    finally:
        node.stop()


def _they_have_hashes(node: StaticNode) -> None:
    web, office = Client("127.0.0.1", 7000), node.from_office()
    assert node.user_of(web) == node.run("name", "service:web").strip()
    _up, down = node.classes()
    minors = [(node.mark(client) or 0) & 0xFFFF for client in (web, office)]
    assert [down[minor] for minor in minors] == [7_000_000, 9_000_000]
    assert "service:web" not in json.dumps(status(node))


def test_hundreds_come_into_force_without_keeping_the_agent_from_lines(node: StaticNode) -> None:
    ports = {f"c{number}": {"ports": [10_000 + number]} for number in range(300)}
    node.identify(json.dumps({"services": ports}))
    until(lambda: status(node)["follower"].get("static_identities") == 300)
    alice = Client("127.0.0.1", 4430)
    node.write(alice.line("alice@x"))
    until(lambda: node.mark(alice))
    until(lambda: status(node)["follower"]["static_in_force"] == 300)
    listener = socket.create_server(("127.0.0.1", 10_299))
    assert node.user_of(Client("127.0.0.1", 10_299)) == "service:c299"
    listener.close()
    assert node.conntrack.get_marks([prepare(alice.flow)])[0] == node.mark(alice)
