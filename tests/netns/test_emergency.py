"""What lifts limits works on a broken node, and what must start at once loads little."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.commands import bootstrap
from vff_qos.core.settings import Settings
from vff_qos.kernel.our_trees import majors_found

from .harness import WAN, Client, Memory, Node, eventually, run, snapshot, vff_qos

#: In the place of a module: it is not installed.
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
    assert "alice@x" in node.run("status")
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
