"""Lifting limits, and orders about one user, on a node where something is broken."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.cli import main
from vff_qos.commands import bootstrap
from vff_qos.core.settings import Settings
from vff_qos.kernel.our_trees import majors_found
from vff_qos.state import State
from vff_qos.state_file import SCHEMA_VERSION

from .harness import (
    WAN,
    Client,
    Memory,
    Node,
    ceils,
    eventually,
    fill,
    look,
    run,
    small_disk,
    snapshot,
    status,
    user,
    vff_qos,
)

TYPO = "leef: pfifo\n"


def misspell(node: Node) -> None:
    """One typo in the settings."""
    path = node.directory / "settings.yml"
    path.write_text(path.read_text() + TYPO)


def warned(node: Node, *words: str) -> tuple[str, str]:
    """(output, the one line of warning) of a command that must succeed."""
    done = subprocess.run(node.command(*words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "warning: " in line]
    return done.stdout, line


def ended(node: Node) -> str:
    """What the agent said before it ended by itself, in peace."""
    assert node.agent is not None
    _output, said = node.agent.communicate(timeout=10)
    assert node.agent.returncode == 0, said
    node.agent = None
    return said


# -- settings -------------------------------------------------------------------------------------


def test_suspend_works_with_a_typo_in_the_settings(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    misspell(node)
    said, warning = warned(node, "suspend")
    assert said == "suspended: 1 flows are unlimited now\n"
    line = len((node.directory / "settings.yml").read_text().splitlines())
    assert f"settings.yml:{line}: leef: unknown key" in warning
    assert warning.endswith("; the last good settings stay in force")
    assert node.mark(alice) == 0
    ended(node)


def test_suspend_works_where_there_never_were_good_settings(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    state = State(str(node.directory / "state"))
    state.set_value("settings", None)
    (node.directory / "settings.yml").write_text("handle: '4700'\nif_wan: [\n")
    state.set_value("kernel", {"major": 0x5100})
    _said, warning = warned(node, "suspend")
    assert warning.endswith("; what can be read of the settings is used")
    assert node.mark(alice) == 0


def test_suspend_finds_the_handle_in_the_kernel(settings: Settings, tmp_path: Path) -> None:
    limited = replace(settings, major=0x4711, unclassified_upload_bps=10**7)
    bootstrap.reconcile(limited, Memory())  # the state is lost, too
    assert "rate 10Mbit" in run("tc", "class", "show", "dev", "vffqos0")
    path = tmp_path / "settings.yml"
    path.write_text("handle: [\n")
    options = [f"--{what}-dir={tmp_path / what}" for what in ("state", "run")]
    assert main(["suspend", f"--settings={path}", *options]) == 0
    assert "rate 10Mbit" not in run("tc", "class", "show", "dev", "vffqos0")
    assert "class htb 4711:fffe" in run("tc", "class", "show", "dev", "vffqos0")


@pytest.mark.parametrize("text", [TYPO, "if_ifb: [\n", None])
def test_remove_works_with_broken_settings(
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
) -> None:
    state = State(str(tmp_path / "state"))
    bootstrap.reconcile(settings, state)
    assert "htb 5100:" in run("tc", "qdisc", "show", "dev", "wan0")
    options = [f"--{what}-dir={tmp_path / what}" for what in ("state", "run")]
    path = tmp_path / "settings.yml"
    if text is not None:
        path.write_text(f"if_wan: wan0\n{text}")
    assert main(["remove", f"--settings={path}", *options]) == 0
    said = capsys.readouterr()
    assert "what can be read of the settings is used" in said.err
    assert "htb 5100:" not in run("tc", "qdisc", "show", "dev", "wan0")
    assert "vffqos0" not in run("ip", "link", "show")
    assert "vff_qos" not in run("nft", "list", "tables")


def test_the_kill_switch_does_not_wait_for_an_agent_that_hangs(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    with (node.directory / "run" / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert node.run("suspend") == "suspended: 1 flows are unlimited now\n"
        assert node.mark(alice) == 0


def test_the_agent_starts_with_the_last_good_settings(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    mark = node.mark(alice)
    node.stop()
    misspell(node)
    node.agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
    assert node.agent.stderr is not None
    line = node.agent.stderr.readline()
    assert "leef: unknown key" in line
    assert line.endswith("; the last good settings stay in force\n")
    assert "follows" in node.agent.stderr.readline()
    assert node.mark(alice) == mark
    _said, warning = warned(node, "limit", "alice@x", "--download", "1mbit")
    assert warning.endswith("; the last good settings stay in force")
    assert ceils(node, alice) == (5_000_000, 1_000_000)


def test_without_settings_that_ever_were_good_nothing_is_ordered(node: Node) -> None:
    misspell(node)
    done = subprocess.run(node.command("block", "a@x"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_bootstrap_is_strict_about_settings(node: Node) -> None:
    misspell(node)
    done = subprocess.run(node.command("bootstrap"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# -- policy ---------------------------------------------------------------------------------------


def test_orders_about_one_user_work_with_a_typo_in_the_policy(node: Node) -> None:
    node.write_policy(
        "plans:\n  trial: {upload: 1mbit, download: 1mbit}\n"
        "users:\n  alice@x: {upload: 5mbit, download: 10mbit}\n"
    )
    node.start()
    alice = user(node, "alice@x")
    node.write_policy("users:\n  alice@x: {uplaod: 5mbit}\n")
    for words, limits in (
        (("limit", "alice@x", "--plan", "trial"), (1_000_000, 1_000_000)),
        (("block", "alice@x"), (8_000, 8_000)),
        (("unlimit", "alice@x"), (100_000_000_000, 100_000_000_000)),
        (("reset", "alice@x"), (5_000_000, 10_000_000)),
    ):
        _said, warning = warned(node, *words)
        assert "policy.yml:3: users.alice@x.uplaod: unknown key" in warning
        assert warning.endswith("; the last good policy stays in force")
        assert ceils(node, alice) == limits
    said, warning = warned(node, "explain", "alice@x")
    assert "user alice@x the last good policy: upload 5mbit, download 10mbit" in said
    # What changes the policy for all is not for such a day.
    done = subprocess.run(
        node.command("policy", "apply"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2


@pytest.mark.parametrize("text", ["", "# nobody\n", "null\n"])
def test_an_emptied_policy_changes_nobody(node: Node, text: str) -> None:
    node.start()
    alice = user(node, "alice@x")
    (node.directory / "policy.yml").write_text(text)
    assert node.agent is not None and node.agent.stderr is not None
    assert "policy.yml: holds nothing, which is taken for a mistake" in node.agent.stderr.readline()
    assert ceils(node, alice) == (5_000_000, 10_000_000)


@pytest.mark.parametrize("name", ["users.yaml", "USERS.YML", "users.json"])
def test_a_drop_in_that_nobody_reads_is_told(node: Node, name: str) -> None:
    node.start()
    drop_ins = node.directory / "policy.d"
    drop_ins.mkdir()
    (drop_ins / "README").write_text("not one of ours\n")
    (drop_ins / "old.yml~").write_text("nor is this\n")
    assert node.run("check-config").startswith("ok: ")
    (drop_ins / name).write_text("users: {}\n")
    done = subprocess.run(node.command("check-config"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"policy.d/{name}: is not read, because its name does not end in .yml" in done.stderr


# -- state ----------------------------------------------------------------------------------------


def test_suspend_reaches_the_agent_on_a_full_disk(node: Node) -> None:
    with small_disk(node.directory / "state"):
        node.start()
        alice = user(node, "alice@x")
        fill(node.directory / "state")
        assert node.run("suspend") == "suspended: 1 flows are unlimited now\n"
        assert node.mark(alice) == 0
        assert "suspended" in ended(node)
        assert "DEGRADED: suspended by hand" in look(node)[1]
        # It does not come back by itself, either.
        node.agent = subprocess.Popen(node.command("follow"), stderr=subprocess.PIPE, text=True)
        assert "suspended" in ended(node)


def test_the_agent_starts_on_a_full_disk(node: Node) -> None:
    with small_disk(node.directory / "state"):
        node.start()
        alice = user(node, "alice@x")
        mark = node.mark(alice)
        node.stop()
        ballast = fill(node.directory / "state")
        node.start()
        assert node.mark(alice) == mark
        bob = user(node, "bob@x")
        bobs = node.mark(bob)
        node.stop(signal.SIGKILL)
        # Nothing of it is lost, and nobody's flow becomes somebody else's.
        node.start()
        assert (node.mark(alice), node.mark(bob)) == (mark, bobs)
        node.write(bob.line("bob@x"))
        eventually(lambda: status(node)["follower"]["log"]["lines"] > 0)
        found = status(node)
        assert found["follower"]["conflicts"] == 0 and node.mark(bob) == bobs
        why = f"DEGRADED: the state cannot be written: {node.directory}/state/state.db: "
        assert why in look(node)[1]
        ballast.unlink()
        eventually(lambda: status(node)["state"] == "", 12)
        keys = {owner.key for owner in State(str(node.directory / "state")).owners()}
        assert keys == {"alice@x", "bob@x"}
        node.stop()


def test_suspend_works_without_any_state(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    with sqlite3.connect(node.directory / "state" / "state.db") as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    done = subprocess.run(node.command("suspend"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is newer than this program" in done.stderr and "was stopped" in done.stderr
    assert node.mark(alice) == 0
    ended(node)


# -- systemd --------------------------------------------------------------------------------------


def test_a_suspended_agent_ends_well_for_systemd(node: Node) -> None:
    node.run("suspend")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(node.directory / "notify"))
        heard.settimeout(10)
        environment = {**os.environ, "NOTIFY_SOCKET": str(node.directory / "notify")}
        node.agent = subprocess.Popen(
            node.command("follow"), stderr=subprocess.PIPE, text=True, env=environment
        )
        ended(node)
        # Type=notify takes an end before this for a failure, and tries again and again.
        assert b"READY=1" in heard.recv(1_000).splitlines()


SYSTEMCTL = """#!/bin/sh
echo "$*" >> {log}
case "$1" in
list-unit-files) echo "vff-qos-follow.service enabled"; echo "vff-qos-bootstrap.service enabled"
  echo "vff-qos-gc.timer enabled"; echo "vff-qos-gc.service static" ;;
esac
[ "$1" != "{broken}" ] || {{ echo "Failed: no" >&2; exit 1; }}
"""


@pytest.fixture
def systemd(node: Node, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of what systemctl is asked for: there is no systemd in a namespace."""
    log, command = node.directory / "asked", node.directory / "bin" / "systemctl"
    command.parent.mkdir()
    command.write_text(SYSTEMCTL.format(log=log, broken="nothing"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SUDO_USER", "carol")
    return log


def test_disable_is_the_whole_kill_switch_and_enable_its_way_back(
    node: Node, systemd: Path
) -> None:
    node.start()
    alice = user(node, "alice@x")
    said = node.run("disable", "--reason", "ticket 4711")
    assert said.startswith("disabled by hand by carol at 20")
    assert "(ticket 4711): 1 flows are unlimited now; the units are stopped and masked" in said
    assert node.mark(alice) == 0
    ended(node)
    units = "vff-qos-bootstrap.service vff-qos-follow.service vff-qos-gc.service vff-qos-gc.timer"
    assert systemd.read_text().splitlines()[-1] == f"mask --now {units}"
    record = json.loads((node.directory / "disabled-by-hand").read_text())
    assert (record["who"], record["why"]) == ("carol", "ticket 4711")
    assert "DEGRADED: disabled by hand by carol at 20" in look(node)[1]
    # Nothing else brings the limits back.
    done = subprocess.run(node.command("bootstrap"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this node was disabled by hand by carol" in done.stderr
    assert "'vff-qos enable' brings the limits back" in done.stderr
    assert "no limit was in force" in node.run("disable")
    assert json.loads((node.directory / "disabled-by-hand").read_text()) == record
    systemd.unlink()
    assert node.run("enable").startswith("the units run and the limits are in force; it was dis")
    assert not (node.directory / "disabled-by-hand").exists()
    assert systemd.read_text().splitlines()[1:] == [
        f"unmask {units}",
        f"reset-failed {units}",
        "restart vff-qos-bootstrap.service",
        f"start {units.replace('vff-qos-gc.service ', '')}",
    ]


def test_lifting_limits_ends_the_way_back_of_a_run_that_is_not_confirmed(
    node: Node, systemd: Path
) -> None:
    """Else its timer would start the units again (roles/qos/files/confirm.sh)."""
    kept = node.directory / "run-confirm"
    for command in ("suspend", "disable", "remove"):
        (kept / "files").mkdir(parents=True)
        (kept / "confirm.sh").touch()
        node.run(command)
        assert not kept.exists()


def test_disable_works_with_broken_files_and_enable_refuses_them(node: Node, systemd: Path) -> None:
    node.start()
    alice = user(node, "alice@x")
    misspell(node)
    node.write_policy("users: [\n")
    assert "1 flows are unlimited now" in node.run("disable")
    assert node.mark(alice) == 0
    done = subprocess.run(node.command("enable"), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "leef: unknown key" in done.stderr
    assert (node.directory / "disabled-by-hand").exists()
    assert "unmask" not in systemd.read_text()


def test_disable_says_when_it_could_not_keep_the_units_down(node: Node, systemd: Path) -> None:
    node.start()
    alice = user(node, "alice@x")
    (node.directory / "bin" / "systemctl").write_text(SYSTEMCTL.format(log=systemd, broken="mask"))
    done = subprocess.run(node.command("disable"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the limits are lifted, but may come back: systemctl mask: Failed: no" in done.stderr
    assert node.mark(alice) == 0


# -- libraries that are missing, trees that nobody recorded ---------------------------------------

_MISSING = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"


def hide(monkeypatch: pytest.MonkeyPatch, directory: Path, module: str) -> None:
    """Have children not find a module."""
    (directory / "hidden").mkdir()
    (directory / "hidden" / f"{module}.py").write_text(_MISSING)
    path = os.pathsep.join((str(directory / "hidden"), os.environ["PYTHONPATH"]))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("net")
def test_without_libnftables_bootstrap_says_what_to_install_and_limits_can_be_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot()
    with monkeypatch.context() as patch:
        hide(patch, tmp_path, "nftables")
        code, said = vff_qos(tmp_path, "bootstrap")
        assert code == 2 and said.count("\n") == 1 and "the package python3-nftables" in said
        assert snapshot() == before
        code, said = vff_qos(tmp_path, "remove")
        assert code == 0 and said.endswith("\nno change\n")
    assert vff_qos(tmp_path, "bootstrap")[0] == 0
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/hidden{os.pathsep}{os.environ['PYTHONPATH']}")
    there = snapshot()
    code, said = vff_qos(tmp_path, "bootstrap", "--repair")
    assert code == 2 and said.count("\n") == 1 and snapshot() == there
    code, said = vff_qos(tmp_path, "suspend")
    assert code == 0 and said.endswith("\nsuspended: 0 flows are unlimited now\n")
    assert "100Gbit" in run("tc", "class", "show", "dev", WAN)
    code, said = vff_qos(tmp_path, "remove")
    assert code == 0 and "remove nft table inet vff_qos" in said
    assert snapshot() == before


def test_the_agent_and_the_kill_switch_need_no_pyroute2(
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, tmp_path, "pyroute2")
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    assert "alice@x" in look(node)[1]
    assert "alice@x" in node.run("explain", "alice@x")
    node.run("gc")
    assert "1 flows" in node.run("suspend")
    assert node.mark(client) == 0


@pytest.mark.parametrize("major", [0x5100, 0x2A0, 0x7FFE])
def test_trees_are_found_whatever_their_handle_and_without_settings_record_and_ifb(
    settings: Settings, tmp_path: Path, major: int
) -> None:
    before = snapshot()
    foreign = ["root", "handle", "77:", "htb", "default", "fffe"]
    run("ip", "link", "add", "other0", "type", "veth", "peer", "other1")
    run("tc", "qdisc", "add", "dev", "other0", *foreign)
    for parent, minor in (("77:", "1"), ("77:1", "fffe")):
        words = ["parent", parent, "classid", f"77:{minor}", "htb", "rate", "1gbit"]
        run("tc", "class", "add", "dev", "other0", *words)
    assert majors_found() == set()
    bootstrap.reconcile(replace(settings, major=major, node_ceil_bps=10**8), Memory())
    assert majors_found() == {major}
    run("ip", "link", "del", "vffqos0")
    assert majors_found() == {major}
    code, said = vff_qos(tmp_path, "suspend", more="leaf: [")
    assert code == 0, said
    assert "100Mbit" not in run("tc", "class", "show", "dev", WAN)
    code, said = vff_qos(tmp_path, "remove", more="leaf: [")
    assert code == 0, said
    run("ip", "link", "del", "other0")
    assert snapshot() == before
