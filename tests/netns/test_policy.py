"""Limits that change while the classes are in use, in a real kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.core.owners import Owner
from vff_qos.core.policy import parse
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed.tc import Tc
from vff_qos.shaping import Classes
from vff_qos.state import State

from .harness import MAJOR, Node, ceils, eventually, listeners, look, run, status, user
from .senders import Flood

#: Before the look that comes with each report; a busy machine included.
SOON_S = 4.0


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.stop()


def refuse(node: Node, *words: str) -> str:
    """What a command that must be refused says: one line."""
    done = subprocess.run(node.command(*words), capture_output=True, text=True)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def sent_bytes(minor: int) -> int:
    """What went through a class on the WAN device."""
    tc = Tc()
    found = tc.classes(socket.if_nametoindex("wan0"), MAJOR)[minor].sent_bytes
    tc.close()
    return found


def send_through(minor: int, packets: int) -> None:
    """Packets into a class: SO_PRIORITY names it, no filter is needed."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("wan0", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
        for _ in range(packets):
            sock.send(b"\xff" * 12 + b"\x88\xb5" + b"x" * 86)


def test_a_class_is_changed_in_place(node: Node) -> None:
    node.write_policy("users:\n  alice@x: {download: 10mbit}\n  bob@x: {download: 4mbit}\n")
    node.start()
    alice = user(node, "alice@x")
    minor = (node.mark(alice) or 0) & 0xFFFF
    send_through(minor, 20)
    before = sent_bytes(minor)
    assert before >= 20 * 100
    user(node, "bob@x")
    before_us = listeners()
    with subprocess.Popen(["tc", "monitor"], stdout=subprocess.PIPE, text=True) as monitor:
        try:
            eventually(lambda: listeners() > before_us)
            node.write_policy("users:\n  alice@x: {download: 20mbit}\n  bob@x: {download: 4mbit}\n")
            eventually(lambda: ceils(node, alice)[1] == 20_000_000, SOON_S)
            send_through(minor, 5)
            time.sleep(0.3)
        finally:
            monitor.terminate()
        assert monitor.stdout is not None
        changes = [line for line in monitor.stdout if line.startswith("class")]
    assert sent_bytes(minor) >= before + 5 * 100
    # Nobody else's class was touched, and hers were changed, not deleted and added.
    assert {line.split()[2] for line in changes} == {f"5100:{minor:x}"}, changes


def test_a_drop_in_counts_at_once_and_wins(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    drop_ins = node.directory / "policy.d"
    drop_ins.mkdir()
    (drop_ins / ".users.yml.new").write_text("users: [")
    (drop_ins / "users.yml").write_text("users:\n  alice@x: {upload: 6mbit}\n")
    eventually(lambda: ceils(node, alice) == (6_000_000, 3_000_000), SOON_S)
    (drop_ins / "users.yml").write_text("users:\n  alice@x: {plan: none}\n")
    time.sleep(1.3)
    assert ceils(node, alice) == (6_000_000, 3_000_000)
    (drop_ins / "users.yml").unlink()
    eventually(lambda: ceils(node, alice) == (5_000_000, 10_000_000), SOON_S)


def test_sighup_reads_the_policy_now(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    path = node.directory / "policy.yml"
    with path.open("r+") as file:  # as if the watch had seen nothing: not closed yet
        file.write(path.read_text().replace("5mbit", "7mbit"))
        file.flush()
        assert node.agent is not None
        node.agent.send_signal(signal.SIGHUP)
        eventually(lambda: ceils(node, alice)[0] == 7_000_000, SOON_S)


def test_diff_shows_and_changes_nothing(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    assert node.run("policy", "diff") == "no change\n"
    new = node.directory / "new.yml"
    new.write_text(
        "default: {upload: 2mbit, download: 3mbit}\n"
        "users:\n  alice@x: {upload: 7mbit, download: 10mbit}\n  new@x: {unlimited: true}\n"
    )
    lines = node.run("policy", "diff", str(new)).splitlines()
    assert lines == [
        "alice@x: upload 5mbit -> 7mbit",
        "new@x: upload 2mbit -> unlimited, download 3mbit -> unlimited",
        "1 of 1 users with a class would change, and 1 without one",
    ]
    assert node.run("policy", "diff", "-v", str(new)).splitlines()[1] == (
        "new@x: upload 2mbit -> unlimited, upload guaranteed 2mbit -> 5mbit, "
        "download 3mbit -> unlimited, download guaranteed 3mbit -> 5mbit"
    )
    # What changes no rate is counted.
    new.write_text(
        "default: {upload: 2mbit, download: 3mbit}\n"
        "users:\n  alice@x: {upload: 5mbit, download: 10mbit, guaranteed: 1mbit}\n"
    )
    assert node.run("policy", "diff", str(new)).splitlines() == [
        "1 users: guarantee or quantum alone (-v shows them)",
        "1 of 1 users with a class would change, and 0 without one",
    ]
    assert node.run("policy", "diff", "-v", str(new)).splitlines()[0] == (
        "alice@x: upload guaranteed 5mbit -> 1mbit, download guaranteed 5mbit -> 1mbit"
    )
    time.sleep(0.3)
    assert ceils(node, alice) == (5_000_000, 10_000_000)


@pytest.mark.parametrize("running", [True, False])
def test_apply_installs_and_waits_until_it_holds(node: Node, running: bool) -> None:
    node.start()
    alice = user(node, "alice@x")
    if not running:
        node.stop()
    installed = node.directory / "policy.yml"
    installed.chmod(0o640)
    os.chown(installed, 0, 4711)
    new = node.directory / "new.yml"
    new.write_text("users:\n  alice@x: {upload: 8mbit, download: 9mbit}\n")
    done = node.run("policy", "apply", str(new))
    assert ceils(node, alice) == (8_000_000, 9_000_000)
    assert done.startswith("1 of 1 users' classes changed")
    assert ("the agent does not run" in done) is not running
    status = installed.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o640, 4711)
    assert installed.read_text() == new.read_text()
    assert sorted(p.name for p in node.directory.glob(".policy*")) == []
    assert node.run("policy", "apply").startswith("0 of 1 users' classes changed")
    # Who comes now gets the new policy, too: the agent has it.
    if running:
        assert ceils(node, user(node, "new@x")) == (20_000_000, 50_000_000)


def test_a_wrong_policy_is_refused_and_nothing_changes(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    before = (node.directory / "policy.yml").read_text()
    new = node.directory / "new.yml"
    new.write_text("users:\n  alice@x: {upload: 8 parsecs}\n")
    for action in ("diff", "apply"):
        said = refuse(node, "policy", action, str(new))
        assert said.startswith(f"vff-qos policy: {new}:2: users.alice@x.upload: '8 parsecs'")
    assert (node.directory / "policy.yml").read_text() == before
    assert ceils(node, alice) == (5_000_000, 10_000_000)


def test_a_mistake_in_the_files_does_not_end_the_limits_with_a_restart(node: Node) -> None:
    drop_in = node.directory / "policy.d" / "billing.yml"
    drop_in.parent.mkdir()
    drop_in.write_text("users: {alice@x: {upload: fast}}")
    said = refuse(node, "follow")  # there never was a good one
    assert "billing.yml:1: users.alice@x.upload: 'fast'" in said
    drop_in.write_text("users: {alice@x: {upload: 7mbit}}")
    node.start()
    node.stop(signal.SIGKILL)
    drop_in.write_text("users: {alice@x: {upload: fast}}")
    done = subprocess.run(node.command("bootstrap", "--plan"), capture_output=True, text=True)
    complaint, beyond = done.stderr.splitlines()
    assert complaint.endswith("; the last good policy stays in force")
    assert "vffqos0 exists" in beyond  # these trees are not those that it makes
    node.agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
    assert node.agent.stderr is not None
    said = node.agent.stderr.readline()
    assert "billing.yml:1: users.alice@x.upload: 'fast'" in said
    assert said.endswith("; the last good policy stays in force\n")
    assert "follows" in node.agent.stderr.readline()
    alice = user(node, "alice@x")
    assert ceils(node, alice)[0] == 7_000_000
    drop_in.write_text("users: {alice@x: {upload: 8mbit}}")
    eventually(lambda: ceils(node, alice)[0] == 8_000_000)


def test_limit_unlimit_block_and_reset(node: Node) -> None:
    node.start()
    alice, bob = user(node, "alice@x"), user(node, "bob@x")
    said = node.run("limit", "alice@x", "--download", "1 Mbps", "--for", "2h", "--reason", "test")
    assert said.startswith("alice@x: upload 5mbit, download 1mbit, until ")
    assert ceils(node, alice) == (5_000_000, 1_000_000)
    (override,) = status(node)["overrides"]
    assert (override["email"], override["why"], override["who"]) == ("alice@x", "test", "root")
    assert 7_100 < override["until"] - time.time() <= 7_200
    assert "override alice@x: download 1 Mbps, until" in look(node)[1]
    node.run("block", "bob@x")
    assert ceils(node, bob) == (8_000, 8_000)
    # The agent knows: another connection, and another policy, change nothing of it.
    node.write_policy("users:\n  alice@x: {upload: 6mbit}\n")
    eventually(lambda: ceils(node, alice) == (6_000_000, 1_000_000))
    user(node, "bob@x")
    assert ceils(node, bob) == (8_000, 8_000)
    assert node.run("unlimit", "alice@x").startswith("alice@x: upload unlimited")
    assert ceils(node, alice) == (100_000_000_000, 100_000_000_000)
    assert len(status(node)["overrides"]) == 2
    node.run("reset", "alice@x")
    node.run("reset", "bob@x")
    assert ceils(node, alice) == (6_000_000, 3_000_000)
    assert ceils(node, bob) == (2_000_000, 3_000_000)
    assert node.run("reset", "bob@x").startswith("no change; bob@x: upload 2mbit")
    assert "it holds when they come" in node.run("limit", "new@x", "--upload", "1mbit")
    assert ceils(node, user(node, "new@x")) == (1_000_000, 3_000_000)


def test_an_override_ends_in_time(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    node.run("limit", "alice@x", "--download", "1mbit", "--for", "2s")
    (order,) = State(str(node.directory / "state")).overrides()
    assert ceils(node, alice)[1] == 1_000_000
    eventually(lambda: ceils(node, alice)[1] == 10_000_000)
    assert order.until is not None and time.time() >= order.until
    eventually(lambda: State(str(node.directory / "state")).overrides() == [])
    assert status(node)["overrides"] == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_override_survives_restarts_and_ends_while_nobody_runs(node: Node, how: int) -> None:
    node.start()
    alice, bob = user(node, "alice@x"), user(node, "bob@x")
    node.run("limit", "alice@x", "--download", "1mbit", "--for", "1h")
    node.run("limit", "bob@x", "--download", "1mbit", "--for", "1s")
    node.stop(how)
    # Without flows at the start, too, what ended must end.
    bobs = (node.mark(bob) or 0) & 0xFFFF
    run("conntrack", "-D", "-p", "tcp", "--orig-src", "127.0.0.1", "--sport", str(bob.port))
    time.sleep(1.1)
    node.start()
    assert ceils(node, alice)[1] == 1_000_000
    assert node.classes()[1][bobs] == 3_000_000
    eventually(lambda: len(State(str(node.directory / "state")).overrides()) == 1, 2)


def test_an_operators_order_wins_over_an_automatic_one(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    from vff_qos.core.policy.overrides import Override
    from vff_qos.lock import Lock

    state, lock = State(str(node.directory / "state")), Lock(str(node.directory / "run"))
    automatic = [
        Override("alice@x", "fair_use", {"download": "2mbit"}, None, "vff-qos", "20 GB", 0.0),
        Override("alice@x", "quota", {"download": "1mbit", "upload": "9mbit"}, None, "", "", 0.0),
    ]
    with lock:
        state.save_overrides(automatic)
    eventually(lambda: ceils(node, alice) == (5_000_000, 1_000_000), 2.0)
    node.run("limit", "alice@x", "--upload", "4mbit")
    assert ceils(node, alice) == (4_000_000, 10_000_000)
    node.run("reset", "alice@x")
    assert ceils(node, alice) == (5_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("limit", "alice@x"), "vff-qos limit: say what: --download RATE"),
        (("limit", "alice@x", "--download", "5mbps"), "download: '5mbps': 'mbps' is bytes a sec"),
        (("limit", "alice@x", "--plan", "gold"), "plan: there is no plan 'gold'"),
        (("block", "alice@x", "--for", "soon"), "--for: 'soon' is not a time; allowed: 1s to"),
        (("block", "a\nb"), "'a\\nb' must be 1 to 320 bytes"),
        (("unlimit", "alice@x", "--reason", "a\nb"), "the reason must be"),
    ],
)
def test_a_wrong_order_is_refused_in_one_line(
    node: Node, words: tuple[str, ...], said: str
) -> None:
    assert said in refuse(node, *words)
    assert status(node)["overrides"] == []


def test_explain_says_what_decides_and_what_the_kernel_has(node: Node) -> None:
    (node.directory / "policy.d").mkdir()
    (node.directory / "policy.d" / "users.yml").write_text("users:\n  alice@x: {plan: pro}\n")
    node.write_policy(
        "plans:\n  pro: {upload: 5mbit, download: 10mbit, weight: 2}\n"
        "match:\n- {pattern: '*.trial', upload: 1mbit}\n"
        "users:\n  alice@x: {upload: 1mbit}\n"
    )
    node.start()
    user(node, "alice@x")
    found = json.loads(node.run("explain", "alice@x", "--json"))
    assert found["rule"] == {"kind": "user", "name": "alice@x", "plan": "pro"}
    assert [(layer["name"], layer["where"]) for layer in found["layers"]] == [
        ("user alice@x", f"{node.directory}/policy.d/users.yml:2"),
        ("plan pro", f"{node.directory}/policy.yml:3"),
        ("default", f"{node.directory}/policy.yml:1"),
    ]
    assert found["class"]["flows"] == 1
    assert found["class"]["download"]["ceil_bps"] == found["wanted"]["download"]["ceil_bps"]
    assert found["class"]["upload"]["as_wanted"] and found["class"]["download"]["as_wanted"]
    node.run("limit", "alice@x", "--download", "3mbit")
    text = node.run("explain", "alice@x")
    assert text.startswith("alice@x: upload 5mbit, download 3mbit, weight 2, pfifo\n")
    assert "decided by: a temporary override" in text
    assert "DIFFERS" not in text
    found = json.loads(node.run("explain", "z.trial", "--json"))
    assert found["rule"]["name"] == "*.trial"
    assert found["layers"][0]["where"] == f"{node.directory}/policy.yml:5"
    assert found["class"] is None
    assert "decided by: default" in node.run("explain", "stranger")


def test_explain_and_diff_see_a_class_that_somebody_changed(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    minor = f"{(node.mark(alice) or 0) & 0xFFFF:x}"

    def is_seen() -> bool:
        run("tc", "class", "change", "dev", "wan0", "parent", "5100:1", "classid", f"5100:{minor}",
            "htb", "rate", "99mbit", "quantum", "3000")  # fmt: skip
        return "DIFFERS" in node.run("explain", "alice@x")

    # Once after its start the agent puts right what had changed before.
    eventually(is_seen, 15)
    assert "alice@x: download 99mbit -> 10mbit" in node.run("policy", "diff")
    assert node.run("policy", "apply").startswith("1 of 1 users' classes changed")
    assert ceils(node, alice) == (5_000_000, 10_000_000)


# -- the parameters, without an agent -------------------------------------------------------------

SETTINGS = Settings(leaf="pfifo", node_ceil_bps=10**9)


class Bare:
    """Classes and their owners, in one process."""

    def __init__(self, policy: str, users: int, settings: Settings = SETTINGS) -> None:
        self.tc = Tc()
        self.devices = socket.if_nametoindex("vffqos0"), socket.if_nametoindex("wan0")
        parsed = parse_policy(policy.encode(), "p")
        self.classes = Classes(settings, parsed, self.tc, self.devices)
        self.owners = [Owner(f"u{n}@x", n + 2) for n in range(users)]
        self.classes.load(self.owners, set())
        assert self.classes.ensure(self.owners) == []

    def change(self, policy: str) -> list[Owner]:
        """Another policy; returns whose class was changed."""
        self.classes.set_policy(parse_policy(policy.encode(), "p"))
        self.classes.recount(self.owners)
        changed = self.classes.outdated(self.owners)
        assert self.classes.ensure(changed) == []
        assert self.classes.outdated(self.owners) == []
        return changed

    def rates(self) -> list[int]:
        """Guaranteed rates on the WAN device."""
        down = self.classes.kernel()[1]
        return [down[owner.minor].params.rate_bps for owner in self.owners]


def test_only_what_differs_is_changed(trees: tuple[str, str]) -> None:
    bare = Bare("default: {download: 10mbit}", 50)
    assert bare.change("default: {download: 10mbit}") == []
    changed = bare.change("default: {download: 10mbit}\nusers: {u7@x: {upload: 1mbit}}")
    assert [owner.key for owner in changed] == ["u7@x"]


def test_guarantees_never_exceed_the_node(trees: tuple[str, str]) -> None:
    promised = "default: {download: 200mbit, upload: 200mbit, guaranteed: 100mbit}"
    bare = Bare(promised, 5)
    assert bare.rates() == [100_000_000] * 5
    more = [Owner(f"v{n}@x", 100 + n) for n in range(60)]
    bare.owners += more
    assert bare.classes.ensure(more) == []
    # 65 promises of 100 Mbit/s, of which the node can keep 500 Mbit/s together.
    assert sum(bare.rates()) <= 500_000_000
    assert len(set(bare.rates())) == 1
    # Whoever lowers a limit below the plan's guarantee lowers that, too.
    lower = "plans: {p: {guaranteed: 100mbit, download: 200mbit, upload: 200mbit}}\n"
    assert bare.change(lower + "default: {plan: p, download: 1mbit, upload: 1mbit}")
    assert set(bare.rates()) == {1_000_000}


def test_a_leaf_changes_with_the_plan(
    trees: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # bfifo stands for the leaves that not every kernel has; the way is the same.
    monkeypatch.setitem(parse._KEYS, "leaf", parse._one_of("pfifo", "bfifo"))
    plans = "plans: {a: {}, b: {leaf: bfifo}}\ndefault: {plan: a}\n"
    bare = Bare(plans, 3)
    changed = bare.change(f"{plans}users: {{u1@x: {{plan: b}}}}")
    assert [owner.key for owner in changed] == ["u1@x"]
    for kinds in bare.tc.leaves(bare.devices, MAJOR):
        assert [kinds[owner.minor] for owner in bare.owners] == ["pfifo", "bfifo", "pfifo"]
    # Another process, which has not made the classes, sees the same.
    fresh = Classes(SETTINGS, parse_policy(b"default: {}", "p"), Tc(), bare.devices)
    fresh.load(bare.owners, {owner.minor for owner in bare.owners})
    assert fresh.ensure(bare.owners) == []
    assert set(bare.tc.leaves(bare.devices, MAJOR)[1].values()) == {"pfifo"}


def test_a_leaf_that_is_gone_comes_back(trees: tuple[str, str]) -> None:
    bare = Bare("default: {}", 3)
    run("tc", "qdisc", "del", "dev", "wan0", "parent", "5100:3", "handle", "3:")
    assert [owner.minor for owner in bare.change("default: {}")] == [3]
    assert bare.tc.leaves(bare.devices, MAJOR)[1] == {2: "pfifo", 3: "pfifo", 4: "pfifo"}


def _shares(bare: Bare, sockets: dict[int, int], seconds: float) -> dict[int, float]:
    """Bit/s of each user's class while all of them flood."""
    flood = Flood(sockets)
    flood.send(0.5)
    start, before = time.monotonic(), bare.classes.kernel()[1]
    flood.send(seconds)
    after, took = bare.classes.kernel()[1], time.monotonic() - start
    flood.close()
    eventually(lambda: not any(c.backlog_bytes for c in bare.classes.kernel()[1].values()), 20)
    return {m: (after[m].sent_bytes - before[m].sent_bytes) * 8 / took for m in sockets}


@pytest.mark.alone
@pytest.mark.parametrize("ceil_bps", [10_000_000, 20_000_000])
def test_the_full_node_is_shared_by_weight_whatever_the_limits_and_flows(
    trees: tuple[str, str], ceil_bps: int
) -> None:
    limit = ceil_bps // 1_000_000
    bare = Bare(
        f"default: {{download: {limit}mbit}}\nusers:\n  u2@x: {{weight: 4}}\n"
        f"  u3@x: {{download: {limit // 2}mbit}}\n",
        4,
        settings=replace(SETTINGS, node_ceil_bps=ceil_bps),
    )
    run("tc", "class", "change", "dev", "wan0", "parent", "5100:", "classid", "5100:1", "htb",
        "rate", f"{ceil_bps}bit", "burst", "64k", "cburst", "64k", "quantum", "60000")  # fmt: skip
    one, many, heavy, low = (owner.minor for owner in bare.owners)
    got = _shares(bare, {one: 1, many: 64, heavy: 1, low: 8}, 2.0)
    assert sum(got.values()) == pytest.approx(ceil_bps, rel=0.05)
    for minor in (one, many, low):
        assert got[minor] == pytest.approx(ceil_bps / 7, rel=0.05), got
    assert got[heavy] == pytest.approx(ceil_bps * 4 / 7, rel=0.05), got
    # Alone, a user reaches the whole limit.
    assert _shares(bare, {low: 1}, 1.0)[low] == pytest.approx(ceil_bps / 2, rel=0.05)


def test_10000_users_change_at_once(trees: tuple[str, str]) -> None:
    """How long it takes is a row of the bench: `policy.apply_s`."""
    count = 10_000
    bare = Bare("default: {download: 10mbit}", count)

    def policy(rate: int) -> str:
        users = (f"  u{n}@x: {{plan: p, download: {rate + n % 9}mbit}}" for n in range(count))
        return "plans: {p: {upload: 5mbit}}\nusers:\n" + "\n".join(users)

    for rate in (20, 40):
        text = policy(rate)
        # All that the agent does between a changed file and the last class.
        bare.classes.set_policy(parse_policy(text.encode(), "p"))
        bare.classes.recount(bare.owners)
        changed = bare.classes.outdated(bare.owners)
        assert bare.classes.ensure(changed) == []
        assert len(changed) == count
    assert bare.classes.outdated(bare.owners) == []
