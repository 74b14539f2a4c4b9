"""An installation of the role qos_per_user_xray is recognised exactly, and replaced under traffic.

The kernel of a developer's machine may lack act_ctinfo and cls_fw: the old tree then stands without
them, and ours as well.  The whole of it, with units and files, runs on the lab node."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ansible_collections.vff.qos.plugins.module_utils import old_role as shared
from ansible_collections.vff.qos.plugins.modules import qos_preflight

from lab.guest import old_role
from lab.guest.old_role import Job
from vff_qos.commands import bootstrap
from vff_qos.commands import node as work_on
from vff_qos.commands.takeover import Takeover
from vff_qos.config import Paths
from vff_qos.core.settings import parse_settings
from vff_qos.errors import KernelRefused
from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.kernel.packed.tc import Tc

from .harness import Client, Module, Node, eventually, root_of, run, snapshot
from .healing import plan_without_filters

PORT = 4430
JOB: Job = {
    "wan": "wan0", "ifb": "ifb0", "log": "/var/log/supervisor/xray.out.log", "port": PORT,
    "upload": "5mbit", "download": "8mbit", "ceil": "1gbit",
}  # fmt: skip
ALICE, BOB, STRANGER = "alice@x", "bob@x", "stranger@x"


class OldNode(Node):
    """A node that the old role has; two users and a stranger have live connections."""

    def __init__(self, directory: Path, queues: int = 1) -> None:
        super().__init__(directory)
        self.write_policy(
            "users:\n"
            f"  {ALICE}: {{upload: 5mbit, download: 10mbit}}\n"
            f"  {BOB}: {{upload: 6mbit, download: 12mbit}}\n"
        )
        made_with = ["numtxqueues", str(queues), "numrxqueues", str(queues)]
        run("ip", "link", "add", "wan0", *made_with, "type", "veth", "peer", "name", "wan1")
        run("ip", "address", "add", "10.9.0.1/24", "dev", "wan0")
        for device in ("wan0", "wan1"):
            run("ip", "link", "set", device, "up")
        self.before = snapshot()
        (directory / "qos.env").write_text(old_role.env(JOB))
        old_role.kernel(JOB, ctinfo=False)
        self.clients: dict[str, Client] = {}
        for email in (ALICE, BOB, STRANGER):
            old_role.classes(JOB, old_role.mark_of(email), filters=False)
            self.clients[email] = self.connect(old_role.mark_of(email))

    def connect(self, mark: int) -> Client:
        """One more connection, marked."""
        client = Client("127.0.0.1", PORT)
        assert not self.conntrack.set_marks([prepare(client.flow, mark)])
        return client

    def bootstrap(self) -> tuple[int, str]:
        """What the unit does; exit code and words."""
        done = subprocess.run(
            self.command("bootstrap"), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def limits(self, email: str) -> tuple[int | None, int | None]:
        """(upload, download) of the class that a user's connection is in."""
        mark = self.mark(self.clients[email]) or 0
        assert mark >> 16 == 0x5100, f"{email}: {mark:#x}"
        up, down = self.classes()
        return up.get(mark & 0xFFFF), down.get(mark & 0xFFFF)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldNode]:
    plan_without_filters(tmp_path, monkeypatch)
    made = OldNode(tmp_path)
    yield made
    made.stop()


def check_taken_over(node: OldNode) -> None:
    """Everybody is limited by ours, and nothing of the old is there."""
    assert node.limits(ALICE) == (5_000_000, 10_000_000)
    assert node.limits(BOB) == (6_000_000, 12_000_000)
    assert node.limits(STRANGER) == (2_000_000, 3_000_000)  # the default
    assert len({node.mark(client) for client in node.clients.values()}) == 3
    assert root_of("wan0") == "htb 5100:"
    qdiscs = run("tc", "qdisc", "show")
    assert "htb 1:" not in qdiscs and "htb 2:" not in qdiscs
    assert "clsact" in qdiscs and "qdisc ingress" not in qdiscs
    assert old_role.TABLE not in run("nft", "list", "tables")


def test_the_old_roles_objects_give_way_and_live_users_are_limited_at_once(node: OldNode) -> None:
    code, said = node.bootstrap()
    assert code == 0, said
    check_taken_over(node)
    assert "ifb0" not in run("ip", "-o", "link")
    lines = said.splitlines()
    assert "give 3 connections of the role qos_per_user_xray to 3 classes of ours" in lines
    # Uploads are led away last, and what they came through goes after that.
    order = [
        "add ifb device vffqos0",
        "add root qdisc htb 5100: of wan0",
        "remove ingress qdisc ingress of wan0",
        "add ingress qdisc clsact of wan0",
        f"remove nft table inet {old_role.TABLE}",
        "remove ifb device ifb0",
    ]
    assert [line for line in lines if line in order] == order
    assert node.bootstrap() == (0, "no change\n")
    # What comes back is the kernel's default, not the old tree.
    node.run("remove")
    assert snapshot() == node.before


def test_two_trees_take_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_without_filters(tmp_path, monkeypatch)
    node = OldNode(tmp_path, queues=2)
    settings = tmp_path / "settings.yml"
    settings.write_text(settings.read_text() + "trees: 2\nwan_ceil: 10gbit\n")
    code, said = node.bootstrap()
    assert code == 0, said
    marks = [node.mark(client) or 0 for client in node.clients.values()]
    assert [mark >> 16 for mark in marks] == [0x5100 + (mark & 0xFFFF) % 2 for mark in marks]
    assert len(set(marks)) == 3
    with closing(Tc()) as tc:
        for device in ("vffqos0", "wan0"):
            index = socket.if_nametoindex(device)
            for major in (0x5100, 0x5101):
                assert tc.params(index, major).keys() - {1, 0xFFFE} == {
                    mark & 0xFFFF for mark in marks if mark >> 16 == major
                }
    assert node.bootstrap() == (0, "no change\n")
    node.run("remove")
    assert snapshot() == node.before
    node.stop()


def test_the_next_line_gives_a_nameless_connection_to_its_user(node: OldNode) -> None:
    assert node.bootstrap()[0] == 0
    mark = old_role.mark_of(STRANGER)
    client = node.clients[STRANGER]
    node.start()
    assert str(client.flow) in run(*node.command("explain", f"taken-over-{mark:04x}"))
    at_first = node.mark(client)
    node.write(client.line(STRANGER))
    eventually(lambda: node.mark(client) != at_first)
    assert node.limits(STRANGER) == (2_000_000, 3_000_000)
    # Who was known by the mark stays where they are.
    alice = node.mark(node.clients[ALICE])
    node.write(node.clients[ALICE].line(ALICE), client.line(STRANGER))
    late = Client("127.0.0.1", PORT)
    node.write(late.line(ALICE))
    eventually(lambda: node.mark(late))
    assert node.mark(late) == node.mark(node.clients[ALICE]) == alice


def test_marks_of_others_are_left_alone(node: OldNode) -> None:
    """What is no user's class there is none of the old role's marks, nor is UDP or another port."""
    alice = old_role.mark_of(ALICE)
    others = {node.connect(0x17): 0x17, node.connect(0x51): 0x51}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 4431))
        listener.listen()
        elsewhere = Client("127.0.0.1", 4431)
        assert not node.conntrack.set_marks([prepare(elsewhere.flow, alice)])
        others[elsewhere] = alice
        assert node.bootstrap()[0] == 0
        assert {client: node.mark(client) for client in others} == others


def cut_short(node: OldNode) -> int:
    """A bootstrap that ends when the trees have changed places; its exit code."""
    script = node.directory / "cut.py"
    script.write_text(
        "import os, sys\n"
        "import vff_qos.commands.takeover as takeover\n"
        "takeover.Takeover.move_marks = lambda self, trees: os._exit(9)\n"
        "from vff_qos.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = node.command("bootstrap")
    command[1:3] = [str(script)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_a_run_that_was_cut_short_is_ended_by_the_next(node: OldNode) -> None:
    """The trees have changed places, and nothing in the kernel tells the old marks any more."""
    assert cut_short(node) == 9
    assert root_of("wan0") == "htb 5100:"
    assert node.mark(node.clients[ALICE]) == old_role.mark_of(ALICE)
    assert node.bootstrap()[0] == 0
    check_taken_over(node)


def test_a_repair_begins_no_takeover_and_ends_one(node: OldNode) -> None:
    """Whoever goes back to the old role while our agent runs has no fight with its repairs."""
    command = [*node.command("bootstrap"), "--repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "root qdisc of wan0 is htb 1:" in done.stderr
    assert cut_short(node) == 9
    node.run("bootstrap", "--repair")
    assert node.limits(ALICE) == (5_000_000, 10_000_000)


def test_the_old_ifb_becomes_ours_if_we_are_to_have_its_name(node: OldNode) -> None:
    with (node.directory / "settings.yml").open("a") as settings:
        settings.write("if_ifb: ifb0\n")
    code, said = node.bootstrap()
    assert code == 0, said
    assert "change ifb device ifb0" in said
    assert "alias vff-qos" in run("ip", "link", "show", "ifb0")
    assert root_of("ifb0") == "htb 5100:"
    assert old_role.TABLE not in run("nft", "list", "tables")
    assert node.bootstrap() == (0, "no change\n")
    node.run("remove")
    assert snapshot() == node.before


# --- what only looks like it ---


def no_env(node: OldNode) -> None:
    (node.directory / "qos.env").unlink()


def somebodys_env(node: OldNode) -> None:
    env = node.directory / "qos.env"
    env.write_text(env.read_text().replace("Generated by Ansible role", "Made for"))


def other_default(node: OldNode) -> None:
    run("tc", "qdisc", "del", "dev", "wan0", "root")
    run("tc", "qdisc", "add", "dev", "wan0", "root", "handle", "1:", "htb", "default", "30")


def without_its_classes(node: OldNode) -> None:
    run("tc", "qdisc", "del", "dev", "wan0", "root")
    run("tc", "qdisc", "add", "dev", "wan0", "root", "handle", "1:", "htb", "default", "fffe")


def filters_of_others(node: OldNode) -> None:
    words = "dev wan0 parent ffff: protocol ip pref 50 u32 match ip src 192.0.2.1 flowid :1"
    run("tc", "filter", "add", *words.split())


def on_another_device(node: OldNode) -> None:
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text().replace("if_wan: wan0", "if_wan: wan1"))


ALIKE = [
    (no_env, "root qdisc"),
    (somebodys_env, "root qdisc"),
    (other_default, "root qdisc"),
    (without_its_classes, "root qdisc"),
    (filters_of_others, "filters of others: u32 pref 50"),
    (on_another_device, "the role qos_per_user_xray limits on wan0"),
]


def preflight(node: OldNode, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the preflight says of the same node."""
    monkeypatch.setattr(shared, "ENV", str(node.directory / "qos.env"))
    wan = parse_settings((node.directory / "settings.yml").read_bytes(), "").wan
    notes: list[str] = []
    problems: list[str] = []
    module = Module(wan=wan, ifb="vffqos0", access_logs=[str(node.log)])
    old, _things = qos_preflight.check_old_role(module, notes, problems)
    facing = qos_preflight.check_wan(module, problems, notes, old)
    qos_preflight.check_ifb(module, facing, problems, old)
    return problems


@pytest.mark.parametrize(("change", "why"), ALIKE)
def test_what_only_looks_like_it_is_refused_by_preflight_and_agent(
    node: OldNode,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[OldNode], None],
    why: str,
) -> None:
    change(node)
    before = snapshot()
    assert any(why in problem for problem in preflight(node, monkeypatch))
    code, said = node.bootstrap()
    assert code == 2 and why in said
    assert snapshot() == before
    assert node.mark(node.clients[ALICE]) == old_role.mark_of(ALICE)


def test_the_preflight_lets_the_old_role_itself_pass_and_says_what_it_gave(
    node: OldNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preflight(node, monkeypatch) == []
    notes: list[str] = []
    problems: list[str] = []
    module = Module(access_logs=[str(node.log)])
    _old, things = qos_preflight.check_old_role(module, notes, problems)
    assert "upload 5mbit and download 8mbit" in notes[0]
    assert things["units"] == []
    # A node whose log nobody would find is not touched.
    module = Module(access_logs=["/var/log/xray/no-such.log"])
    qos_preflight.check_old_role(module, notes, problems)
    assert (
        "qos_container: remnanode and qos_xray_access_log_path: /var/log/supervisor" in problems[0]
    )
    # Its device may become ours.
    for ifb in ("ifb0", "vffqos0"):
        problems = []
        old = shared.read_env((node.directory / "qos.env").read_text())
        qos_preflight.check_ifb(Module(ifb=ifb), "wan0", problems, old)
        assert problems == []


def test_where_only_files_are_left_there_is_nothing_to_take_from_the_kernel(
    node: OldNode,
) -> None:
    """As after a reboot with its units disabled."""
    run("tc", "qdisc", "del", "dev", "wan0", "root")
    run("tc", "qdisc", "del", "dev", "wan0", "ingress")
    run("ip", "link", "del", "ifb0")
    run("nft", "delete", "table", "inet", old_role.TABLE)
    code, said = node.bootstrap()
    assert code == 0, said
    assert "qos_per_user_xray" not in said and "remove" not in said
    node.run("remove")
    assert snapshot() == node.before


def test_the_marks_are_put_down_before_the_tree_goes(
    node: OldNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step that fails leaves them known."""
    names = ("settings.yml", "policy.yml", "policy.d", "state", "run")
    paths = Paths._make(str(node.directory / name) for name in names)

    def stop(*_args: object) -> None:
        raise KernelRefused(errno.EPERM, "the first step")

    with work_on.Node(paths) as command:
        given = command.settings, command.state
        bootstrap.reconcile(*given, dry_run=True, takeover=Takeover(command))
        assert command.state.get_value("takeover") is None
        monkeypatch.setattr(bootstrap, "carry_out", stop)
        with pytest.raises(KernelRefused):
            bootstrap.reconcile(*given, takeover=Takeover(command))
        marks = sorted(old_role.mark_of(email) for email in (ALICE, BOB, STRANGER))
        assert command.state.get_value("takeover") == {"marks": marks, "port": PORT}
    assert root_of("wan0") == "htb 1:"
