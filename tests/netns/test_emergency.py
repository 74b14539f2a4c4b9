"""What lifts limits works on a broken node, and what must start at once loads little."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.commands import bootstrap
from vff_qos.commands.emergency import majors_found, settings_found
from vff_qos.commands.killswitch import suspend
from vff_qos.core.settings import Settings
from vff_qos.journal import Journal
from vff_qos.lock import Lock
from vff_qos.state import State

from .conftest import run
from .test_bootstrap import WAN, Memory, Network, net, settings, snapshot  # noqa: F401
from .test_follow import Client, Node, eventually, node  # noqa: F401

#: In the place of a module: it is not installed.
_MISSING = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"
#: In the place of the plan, in a kernel without our filters.
_WITHOUT_FILTERS = """
import sys
from vff_qos.core.plan import objects, plan
complete = plan.desired
plan.desired = lambda *a: [o for o in complete(*a) if not isinstance(o, objects.Filter)]
from vff_qos.cli import main
sys.exit(main(sys.argv[1:]))
"""


def hide(monkeypatch: pytest.MonkeyPatch, directory: Path, module: str) -> None:
    """Have children not find a module."""
    (directory / "hidden").mkdir()
    (directory / "hidden" / f"{module}.py").write_text(_MISSING)
    path = os.pathsep.join((str(directory / "hidden"), os.environ["PYTHONPATH"]))
    monkeypatch.setenv("PYTHONPATH", path)


def vff_qos(
    directory: Path, *words: str, within: Sequence[str] = (), more: str = ""
) -> tuple[int, str]:
    """Exit code and all output of a command with files in ``directory``."""
    (directory / "settings.yml").write_text(f"wan: {WAN}\nleaf: pfifo\n{more}")
    (directory / "policy.yml").write_text("")
    options = [f"--{what}={directory}/{what}.yml" for what in ("settings", "policy")]
    options += [f"--{what}-dir={directory}" for what in ("state", "run")]
    done = subprocess.run(
        [*within, sys.executable, "-c", _WITHOUT_FILTERS, *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


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
    node: Node,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, tmp_path, "pyroute2")
    node.start()
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    assert "alice@x" in node.run("status")
    assert "alice@x" in node.run("explain", "alice@x")
    node.run("gc")
    assert "1 flows" in node.run("suspend")
    assert node.mark(client) == 0


@pytest.mark.parametrize("major", [0x5100, 0x2A0, 0x7FFE])
def test_trees_are_found_whatever_their_handle(
    settings: Settings,  # noqa: F811
    tmp_path: Path,
    major: int,
) -> None:
    before = snapshot()
    foreign = ["root", "handle", "77:", "htb", "default", "fffe"]
    run("ip", "link", "add", "other0", "type", "veth", "peer", "other1")
    run("tc", "qdisc", "add", "dev", "other0", *foreign)
    for parent, minor in (("77:", "1"), ("77:1", "fffe")):
        words = ["parent", parent, "classid", f"77:{minor}", "htb", "rate", "1gbit"]
        run("tc", "class", "add", "dev", "other0", *words)
    state = State(str(tmp_path))
    assert settings_found(state) == [Settings()]
    low = replace(settings, major=major, node_ceil_bps=10**8)
    bootstrap.reconcile(low, state)
    assert majors_found() == {major}
    assert settings_found(State(str(tmp_path / "lost"))) == [Settings(major=major)]
    (found,) = settings_found(state)
    suspend(found, state, Lock(str(tmp_path)), Journal())
    assert "100Mbit" not in run("tc", "class", "show", "dev", WAN)
    bootstrap.remove(found, state)
    run("ip", "link", "del", "other0")
    assert snapshot() == before


def test_what_is_only_recorded_is_ours_too(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    state.set_value(bootstrap.STATE_KEY, {"major": 0x4711, "devices": {}})
    assert settings_found(state) == [Settings(major=0x4711)]
