"""Fair use with real bytes through real classes."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vff_qos.config import Paths, load_policy
from vff_qos.core.claims.accesslog import Claim
from vff_qos.core.policy.model import Policy
from vff_qos.core.settings import parse_settings
from vff_qos.follower.assign import Assigner
from vff_qos.follower.fair_use import FairUse
from vff_qos.journal import Journal
from vff_qos.kernel.devices import shaping_devices
from vff_qos.kernel.packed.addresses import local_addresses
from vff_qos.kernel.packed.netlink import Netlink
from vff_qos.kernel.packed.tc import Tc
from vff_qos.lock import Lock
from vff_qos.state import State, StateError

from .harness import MAJOR, Client, Node, cut_marks, eventually, look, run
from .senders import Pipe

POLICY = """
default: {plan: basic}
plans:
  basic:
    upload: 800mbit
    download: 800mbit
    fair_use: [{more_than: 5MB, within: 1min, then: slow, for: 1h}]
  slow: {upload: 4mbit, download: 4mbit}
"""


class World:
    """The agent's parts in this process, with a clock that the test moves."""

    def __init__(self, directory: Path, server: Node) -> None:
        self.now = time.time()
        self.directory, self.server = directory, server
        (directory / "policy.yml").write_text(POLICY)
        self.settings = parse_settings((directory / "settings.yml").read_bytes(), "settings.yml")
        self.lock = Lock(str(directory / "run"))
        self.tc = Tc()
        self.start()

    def start(self) -> None:
        """What a start of the agent makes."""
        self.state = State(str(self.directory / "state"))
        policy = self.policy()
        self.assigner = Assigner(
            self.settings, policy, self.state, self.lock, Journal(),
            shaping_devices(self.settings), local_addresses(Netlink(0)), lambda: self.now,
        )  # fmt: skip
        self.assigner.adopt()
        self.fair_use = FairUse(policy, self.state, self.assigner, Journal(), lambda: self.now)

    def policy(self) -> Policy:
        return load_policy(
            Paths(
                policy=str(self.directory / "policy.yml"),
                policy_dir=str(self.directory / "policy.d"),
                state_dir=str(self.directory / "state"),
            )
        )

    def change(self, text: str) -> None:
        """Have another policy in force."""
        (self.directory / "policy.yml").write_text(text)
        policy = self.policy()
        self.assigner.set_policy(policy)
        self.fair_use.set_policy(policy)

    def look(self, seconds: float) -> None:
        """Let time go by, then do a whole look."""
        self.now += seconds
        self.assigner.keep_time()
        for _ in range(20):
            self.fair_use.step(self.now)

    def shown(self, minor: int) -> tuple[int, int]:
        """(ceil, bytes sent) of the download class."""
        found = self.tc.classes(socket.if_nametoindex("wan0"), MAJOR)[minor]
        return found.params.ceil_bps, found.sent_bytes


@pytest.fixture
def world(tmp_path: Path, node: Node) -> Iterator[World]:
    yield World(tmp_path, node)


def claim(world: World, email: str) -> int:
    """A flow of a user; returns the minor."""
    client = Client("127.0.0.1", 4430)
    source = f"127.0.0.1:{client.port}".encode()
    world.assigner.assign([Claim(source, b"in >> direct", email.encode(), False, b"")])
    return (world.server.mark(client) or 0) & 0xFFFF


def punish(world: World) -> int:
    """Let Alice send more than the rule allows; returns Alice's minor."""
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    pipe.send(alice, 6_000_000)
    world.look(5)
    assert len(world.state.overrides()) == 1
    return alice


def test_a_volume_slows_the_class_in_place_and_its_end_restores_it(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = Pipe()
    alice, bob = claim(world, "alice@x"), claim(world, "bob@x")
    world.look(5)
    pipe.send(alice, 3_000_000)
    pipe.send(bob, 3_000_000)
    world.look(5)
    assert world.shown(alice)[0] == world.shown(bob)[0] == 800_000_000
    pipe.send(alice, 3_000_000)
    before = world.shown(alice)[1]
    world.look(5)
    ceil, sent = world.shown(alice)
    # Changed in place: a class made anew would count from zero.
    assert ceil == 4_000_000 and sent >= before > 3_000_000
    assert world.assigner.counters(1)[alice] == pytest.approx(sent, abs=100_000)
    assert world.shown(bob)[0] == 800_000_000
    (override,) = world.state.overrides()
    assert (override.email, override.entry, override.until) == (
        "alice@x", {"plan": "slow"}, world.now + 3_600
    )  # fmt: skip
    assert override.origin == "fair_use: more than 5 MB within 1min"
    assert "alice@x: plan slow, until" in capfd.readouterr().err
    # It holds: 4 Mbit/s are 0.5 MB a second; what the class's queue takes at once is not sent.
    before, started = world.shown(alice)[1], time.monotonic()
    pipe.send(alice, 50_000_000, within_s=2.0)
    rate_bps = (world.shown(alice)[1] - before) * 8 / (time.monotonic() - started)
    assert 3_000_000 < rate_bps < 5_000_000
    world.look(1_800)
    assert world.shown(alice)[0] == 4_000_000
    world.look(1_801)
    assert world.shown(alice)[0] == 800_000_000
    assert world.state.overrides() == []
    assert "is over: its time is up" in capfd.readouterr().err
    # What was sent until now is not held against alice a second time.
    pipe.send(alice, 4_000_000)
    world.look(5)
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    pipe.send(alice, 2_000_000)
    world.look(5)
    assert world.shown(alice)[0] == 4_000_000


def test_usage_and_penalties_survive_a_restart(world: World) -> None:
    pipe = Pipe()
    alice, bob = claim(world, "alice@x"), claim(world, "bob@x")
    world.look(5)
    pipe.send(alice, 6_000_000)
    pipe.send(bob, 3_000_000)
    world.look(5)
    assert (world.shown(alice)[0], world.shown(bob)[0]) == (4_000_000, 800_000_000)
    world.fair_use.finish()
    # While nobody looks.
    pipe.send(bob, 3_000_000)
    world.start()
    world.look(10)
    assert (world.shown(alice)[0], world.shown(bob)[0]) == (4_000_000, 4_000_000)


def test_an_override_that_was_lost_comes_back_and_a_stray_one_goes(world: World) -> None:
    alice = punish(world)
    (override,) = world.state.overrides()
    world.state.delete_overrides([override])
    world.state.save_overrides([override._replace(email="carol@x")])
    world.start()
    world.look(5)
    assert [found.email for found in world.state.overrides()] == ["alice@x"]
    assert world.shown(alice)[0] == 4_000_000


def test_a_rule_that_is_taken_away_ends_its_penalties(world: World) -> None:
    alice = punish(world)
    assert world.shown(alice)[0] == 4_000_000
    world.change(POLICY.replace("fair_use", "#"))
    world.look(1)
    assert world.shown(alice)[0] == 800_000_000
    assert world.state.overrides() == []
    assert list(world.state.usage()) == []


def test_a_penalty_follows_a_rule_that_leads_elsewhere_now(world: World) -> None:
    alice = punish(world)
    (before,) = world.state.overrides()
    world.change(POLICY.replace("slow", "slower").replace("4mbit", "1mbit"))
    world.look(1)
    (override,) = world.state.overrides()
    assert (override.entry, override.until) == ({"plan": "slower"}, before.until)
    assert world.shown(alice)[0] == 1_000_000


def test_a_penalty_may_cut_a_user_off_until_it_ends(world: World) -> None:
    world.server.make_table()
    world.change(POLICY.replace("then: slow", "then: cut"))
    alice = punish(world)
    (override,) = world.state.overrides()
    assert override.entry == {"blocked": "cut"}
    assert cut_marks() == {MAJOR << 16 | alice}
    world.look(3_601)
    assert cut_marks() == set()


def test_a_stop_in_the_middle_of_a_look_counts_nothing_twice(world: World) -> None:
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    pipe.send(alice, 3_000_000)
    world.now += 5
    for _ in range(3):  # both counters, then the users; not the end
        world.fair_use.step(world.now)
    world.fair_use.finish()
    world.start()
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    pipe.send(alice, 3_000_000)
    world.look(5)
    assert world.shown(alice)[0] == 4_000_000


def test_a_penalty_that_could_not_be_written_comes_with_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    pipe.send(alice, 6_000_000)

    def full(_rows: object) -> None:
        raise StateError("state.db: database or disk is full")

    for method in ("save_usage", "save_overrides"):
        with monkeypatch.context() as patch:
            patch.setattr(world.state, method, full)
            world.look(5)
        assert world.shown(alice)[0] == 800_000_000
    world.look(5)
    assert world.shown(alice)[0] == 4_000_000


def test_what_a_person_orders_is_stronger(world: World) -> None:
    alice = punish(world)
    world.server.run("unlimit", "alice@x", "--for", "5min")
    world.look(1)
    assert world.shown(alice)[0] == world.settings.node_ceil_bps
    world.server.run("reset", "alice@x")
    world.look(1)
    assert world.shown(alice)[0] == 4_000_000


def test_a_person_lets_a_user_off_and_what_was_used_counts_no_more(world: World) -> None:
    alice = punish(world)
    said = world.server.run("reset", "alice@x")
    assert "no change; alice@x: upload 4mbit, download 4mbit; a penalty holds them: fair_use: " in (
        said
    )
    assert "'vff-qos reset alice@x --usage' lets them off" in said
    assert world.shown(alice)[0] == 4_000_000
    said = world.server.run("reset", "alice@x", "--usage", "--reason", "ticket 1")
    assert said.startswith(
        "alice@x: upload 800mbit, download 800mbit; let off: fair_use: more than"
    )
    assert said.endswith("counts no more for quota and fair use\n")
    # At once, without the agent, and the agent does not bring it back.
    assert world.shown(alice)[0] == 800_000_000
    world.look(5)
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    assert world.state.overrides() == [] and world.state.forgiven() == []
    assert world.server.run("reset", "alice@x").startswith("no change; alice@x: upload 800mbit")


def test_who_was_let_off_starts_from_nothing(world: World) -> None:
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    pipe.send(alice, 4_000_000)
    world.look(5)
    said = world.server.run("reset", "alice@x", "--usage")
    assert "; there was no penalty; what was used until now counts no more" in said
    world.look(5)
    pipe.send(alice, 4_000_000)
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    pipe.send(alice, 2_000_000)
    world.look(5)
    assert world.shown(alice)[0] == 4_000_000


def test_who_is_let_off_while_no_agent_runs_stays_so(world: World) -> None:
    alice = punish(world)
    world.fair_use.finish()
    world.server.run("reset", "alice@x", "--usage")
    assert world.shown(alice)[0] == 800_000_000
    world.start()
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    assert world.state.overrides() == []


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_penalty_that_begins_in_the_moment_of_letting_off_ends(world: World, steps: int) -> None:
    """Counters are read, it is found and not ordered yet, it is ordered."""
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    pipe.send(alice, 6_000_000)
    world.now += 5
    for _ in range(steps):
        world.fair_use.step(world.now)
    world.server.run("reset", "alice@x", "--usage")
    world.look(0)
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000
    assert world.state.overrides() == []


def test_letting_off_leaves_what_a_person_ordered(world: World) -> None:
    alice = punish(world)
    world.server.run("limit", "alice@x", "--download", "1mbit")
    said = world.server.run("reset", "alice@x", "--usage")
    assert "ordered holds on: 'vff-qos reset alice@x' ends it" in said
    world.look(5)
    assert world.shown(alice)[0] == 1_000_000
    world.server.run("reset", "alice@x")
    world.look(5)
    assert world.shown(alice)[0] == 800_000_000


def test_no_penalty_makes_anybody_faster(world: World) -> None:
    world.change(POLICY + "users: {alice@x: {plan: basic, download: 1mbit}}\n")
    pipe = Pipe()
    alice = claim(world, "alice@x")
    world.look(5)
    run("tc", "class", "change", "dev", "wan0", "parent", "5100:1", "classid", f"5100:{alice:x}",
        "htb", "rate", "800mbit")  # fmt: skip
    pipe.send(alice, 6_000_000)
    world.look(5)
    assert [found.email for found in world.state.overrides()] == ["alice@x"]
    assert world.shown(alice)[0] == 1_000_000


def explained(node: Node, email: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.run("explain", email, "--json"))
    return found


def test_the_agent_slows_down_explains_and_keeps_it_when_killed(node: Node) -> None:
    (node.directory / "policy.yml").write_text(POLICY)
    node.start()
    pipe = Pipe()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    minor = (node.mark(client) or 0) & 0xFFFF

    def used_enough() -> bool:
        pipe.send(minor, 1_000_000, within_s=0.5)
        return node.classes()[1][minor] == 4_000_000

    eventually(used_enough, 40)
    (level,) = explained(node, "alice@x")["usage"]
    assert level["rule"] == "more than 5 MB within 1min"
    assert level["until"] > time.time() + 3_500
    assert "fair_use: more than 5 MB within 1min" in look(node)[1]
    node.stop(signal.SIGKILL)
    node.start()
    time.sleep(3)
    assert node.classes()[1][minor] == 4_000_000
    assert "fair_use: more than 5 MB within 1min" in look(node)[1]
