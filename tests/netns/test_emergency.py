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


def vff_qos(directory: Path, *words: str, within: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and all output of a command with files in ``directory``."""
    (directory / "settings.yml").write_text(f"wan: {WAN}\nleaf: pfifo\n")
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
    assert vff_qos(tmp_path, "suspend") == (0, "suspended: 0 flows are unlimited now\n")
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


def test_a_saved_ruleset_that_is_loaded_again_is_healed(
    settings: Settings,  # noqa: F811
) -> None:
    """`nft list ruleset >file; nft -f file` makes every rule twice."""
    memory = Memory()
    settings = replace(settings, early_shaping=True)
    bootstrap.reconcile(settings, memory)
    whole = run("nft", "list", "table", "inet", "vff_qos")
    run("nft", "-f", "-", stdin=run("nft", "list", "ruleset"))
    assert run("nft", "list", "table", "inet", "vff_qos").count("mark set") == 8
    assert bootstrap.reconcile(settings, memory) == ["change nft table inet vff_qos"]
    assert run("nft", "list", "table", "inet", "vff_qos") == whole
    assert bootstrap.reconcile(settings, memory) == []


@pytest.mark.parametrize("root", ["mq", "handle 1234: mq"])
def test_multiqueue_with_children_of_somebody_comes_back(
    settings: Settings,  # noqa: F811
    root: str,
) -> None:
    run("ip", "link", "add", "mq0", "numtxqueues", "4", "type", "ifb")
    run("ip", "link", "set", "mq0", "up")
    run("tc", "qdisc", "replace", "dev", "mq0", "root", *root.split())
    handle = run("tc", "qdisc", "show", "dev", "mq0", "root").split()[2]
    children = ((1, "8002:", "pfifo limit 71"), (3, "2:", "tbf rate 1gbit burst 1m limit 1m"))
    for queue, child, words in children:
        where = ["parent", f"{handle}{queue}", "handle", child]
        run("tc", "qdisc", "replace", "dev", "mq0", *where, *words.split())
    run("tc", "qdisc", "replace", "dev", "mq0", "parent", "2:1", "handle", "1:", "bfifo")
    before = sorted(run("tc", "qdisc", "show", "dev", "mq0").splitlines())
    memory = Memory()
    consent = replace(settings, wan="mq0", take_foreign_root=True)
    bootstrap.reconcile(consent, memory)
    lines = bootstrap.remove(consent, memory)
    assert f"restore root qdisc mq {handle} of mq0, with 3 qdiscs below it" in lines
    assert sorted(run("tc", "qdisc", "show", "dev", "mq0").splitlines()) == before


_TIMESTAMP = Path("/proc/sys/net/netfilter/nf_conntrack_timestamp")


@pytest.mark.parametrize("first", ["0", "1"])
def test_the_kernel_notes_when_connections_begin_and_does_as_before_after_us(
    settings: Settings,  # noqa: F811
    first: str,
) -> None:
    _TIMESTAMP.write_text(first)
    memory = Memory()
    step = "change sysctl net.netfilter.nf_conntrack_timestamp = 1"
    planned = bootstrap.reconcile(settings, memory, dry_run=True)
    assert (step in planned) == (first == "0") and _TIMESTAMP.read_text() == f"{first}\n"
    assert bootstrap.reconcile(settings, memory) == planned
    assert _TIMESTAMP.read_text() == "1\n"
    assert bootstrap.reconcile(settings, memory) == []
    bootstrap.remove(settings, memory)
    assert _TIMESTAMP.read_text() == f"{first}\n"


def test_a_sysctl_that_cannot_be_set_is_a_note_and_no_error(
    net: Network,  # noqa: F811
    tmp_path: Path,
) -> None:
    _TIMESTAMP.write_text("0")
    # As ProtectKernelTunables= does it, and containers.
    script = f'mount --bind -o ro {_TIMESTAMP} {_TIMESTAMP}; exec "$@"'
    read_only = ["unshare", "-m", "sh", "-ec", script, "sh"]
    for words, said in (
        (["bootstrap", "--plan"], "1 cannot be set: it is read-only here\n"),
        (["bootstrap"], "1 cannot be set: it is read-only here\n"),
        (["bootstrap"], "no change\n"),
        (["remove"], "remove ifb device vffqos0\n"),
    ):
        code, output = vff_qos(tmp_path, *words, within=read_only)
        assert code == 0 and output.endswith(said)
    assert _TIMESTAMP.read_text() == "0\n"
