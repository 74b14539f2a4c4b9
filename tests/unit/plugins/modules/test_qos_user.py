"""The module qos_user as Ansible runs it: a process of its own, against a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.vff.qos.plugins.modules import qos_user

from checkout import AGENT, ROOT
from vff_qos.core.units import parse_duration

BUILD = ROOT / "build"
POLICY = "plans:\n  gold: {download: 100mbit}\n  slow: {download: 1mbit}\n"


class Node:
    """A directory with the agent's files, and its command."""

    def __init__(self, directory: Path, run_module: Callable[..., dict[str, Any]]) -> None:
        self._run = run_module
        self.etc = directory / "etc"
        self.etc.mkdir()
        (self.etc / "settings.yml").write_text("if_wan: eth0\n")
        (self.etc / "policy.yml").write_text(POLICY)
        self.file = self.etc / "policy.d" / "users.yml"
        self.command = directory / "vff-qos"
        self.command.write_text(
            f'#!/bin/sh\nPYTHONPATH={AGENT} exec {sys.executable} -m vff_qos "$@"\n'
        )
        self.command.chmod(0o755)

    def run(self, check: bool = False, **arguments: object) -> dict[str, Any]:
        """What the module returns."""
        files = {"directory": str(self.etc), "command": str(self.command)}
        return self._run("qos_user", check=check, **files, **arguments)

    def users(self) -> dict[str, Any]:
        """What the drop-in holds."""
        found: dict[str, Any] = yaml.safe_load(self.file.read_text())["users"]
        return found


@pytest.fixture
def node(tmp_path: Path, run_module: Callable[..., dict[str, Any]]) -> Node:
    return Node(tmp_path, run_module)


def test_a_user_is_added_changed_and_taken_away_and_others_stay(node: Node) -> None:
    first = node.run(name="a@x", plan="gold")
    assert first["changed"] and first["entry"] == {"plan": "gold"}
    assert first["path"] == str(node.file)
    assert not node.run(name="a@x", plan="gold")["changed"]
    assert node.run(name="12", download="5mbit", upload="6.25MB/s")["changed"]
    assert node.run(name="a@x", blocked=True)["changed"]
    assert node.users() == {
        "a@x": {"blocked": True},
        "12": {"upload": "6.25MB/s", "download": "5mbit"},
    }
    assert not node.run(name="12", download="5mbit", upload="6.25MB/s")["changed"]
    assert node.run(name="a@x", state="absent")["changed"]
    assert not node.run(name="a@x", state="absent")["changed"]
    assert list(node.users()) == ["12"]


def test_who_may_read_the_policy_may_read_the_file(node: Node) -> None:
    group = 1 if os.geteuid() == 0 else os.getgid()
    node.etc.chmod(0o750)
    os.chown(node.etc, -1, group)
    node.run(name="a@x", plan="gold")
    assert (node.file.stat().st_mode & 0o777, node.file.stat().st_gid) == (0o640, group)
    directory = node.file.parent.stat()
    assert (directory.st_mode & 0o777, directory.st_gid) == (0o750, group)
    assert os.listdir(node.file.parent) == ["users.yml"]


def test_the_diff_shows_the_entry_of_the_user_alone(node: Node) -> None:
    node.run(name="a@x", plan="gold")
    node.run(name="b@x", plan="gold")
    diff = node.run(name="a@x", plan="slow")["diff"]
    assert yaml.safe_load(diff["before"]) == {"users": {"a@x": {"plan": "gold"}}}
    assert yaml.safe_load(diff["after"]) == {"users": {"a@x": {"plan": "slow"}}}
    assert node.run(name="a@x", state="absent")["diff"]["after"] == ""


def test_check_mode_says_and_does_not(node: Node) -> None:
    assert node.run(check=True, name="a@x", plan="gold")["changed"]
    assert not node.file.parent.exists()
    node.run(name="a@x", plan="gold")
    before = node.file.read_bytes()
    assert node.run(check=True, name="a@x", plan="slow")["changed"]
    assert node.run(check=True, name="a@x", state="absent")["changed"]
    assert not node.run(check=True, name="a@x", plan="gold")["changed"]
    assert node.file.read_bytes() == before


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"download": "5mbps"}, "users.a@x.download: '5mbps': 'mbps' is bytes a second to tc"),
        ({"plan": "platinum"}, "users.a@x.plan: there is no plan 'platinum'; there are: gold"),
        ({"unlimited": True, "upload": "1mbit"}, "unlimited stands beside a rate"),
        ({"plan": "gold", "for": "2h"}, "for belongs to state limit"),
        ({"state": "absent", "plan": "gold"}, "state absent takes no limits; there is plan"),
        ({"state": "limit", "plan": "gold", "for": "soon"}, "'soon' is not a time such as 2h"),
    ],
)
def test_what_is_wrong_is_refused_with_a_sentence_and_nothing_changes(
    node: Node, arguments: dict[str, object], sentence: str, check: bool
) -> None:
    node.run(name="b@x", plan="gold")
    before = node.file.read_bytes()
    result = node.run(check=check, name="a@x", **arguments)
    assert result["failed"]
    assert sentence in result["msg"]
    assert "\n" not in result["msg"]
    assert node.file.read_bytes() == before
    assert os.listdir(node.file.parent) == ["users.yml"]


def test_a_policy_that_is_broken_elsewhere_is_named_and_nothing_changes(node: Node) -> None:
    (node.etc / "policy.yml").write_text("plans: {gold: {download: fast}}\n")
    result = node.run(name="a@x", plan="gold")
    assert f"{node.etc}/policy.yml:1: plans.gold.download: 'fast' is not a rate" in result["msg"]
    assert not node.file.exists()


def test_an_error_names_the_file_and_not_the_trial(node: Node) -> None:
    result = node.run(name="a@x", plan="platinum")
    assert f"{node.file}:" in result["msg"]


@pytest.mark.parametrize("text", ["users: [a]\n", "plans: {}\n", "users: {a: 1", "- a\n"])
def test_a_file_of_somebody_else_is_left_alone(node: Node, text: str) -> None:
    node.file.parent.mkdir()
    node.file.write_text(text)
    assert node.run(name="a@x", plan="gold")["failed"]
    assert node.file.read_text() == text


def test_without_the_agent_there_is_nothing_to_do(node: Node) -> None:
    node.command.unlink()
    assert "is not there; bring the node to" in node.run(name="a@x", plan="gold")["msg"]


def test_two_at_once_lose_nobody(node: Node) -> None:
    node.run(name="first@x", plan="gold")
    arguments = [f"name=u{n}@x plan=gold directory={node.etc} command={node.command}"
                 for n in range(6)]  # fmt: skip
    started = [
        subprocess.Popen(
            ["ansible", "localhost", "-i", "localhost,", "-c", "local",
             "-m", "vff.qos.qos_user", "-a", words],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(BUILD),
                 "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
                 "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE, text=True,
        )
        for words in arguments
    ]  # fmt: skip
    for process in started:
        out, _ = process.communicate()
        assert process.returncode == 0, out
    assert sorted(node.users()) == ["first@x", *(f"u{n}@x" for n in range(6))]


@pytest.mark.parametrize("option", ["name", "plan"])
@pytest.mark.parametrize("value", [5.1, 7, False])
def test_a_name_that_yaml_took_for_something_else_is_refused(
    node: Node, option: str, value: object
) -> None:
    result = node.run(**{"name": "a@x", "plan": "gold", option: value})  # type: ignore[arg-type]
    assert result["failed"]
    assert result["msg"].startswith(f"{option} is ")
    assert "put it in quotes" in result["msg"]
    assert not node.file.exists()


def test_names_that_look_like_numbers_keep_their_spelling(node: Node) -> None:
    """Also those that somebody wrote into the file without quotes: the agent reads them so."""
    node.file.parent.mkdir()
    node.file.write_text("users:\n  5.100: {plan: gold}\n  007: {plan: gold}\n")
    for name in ("1_000", "12:30", "no"):
        assert node.run(name=name, plan="slow")["changed"]
        assert not node.run(name=name, plan="slow")["changed"]
    assert set(node.users()) == {"5.100", "007", "1_000", "12:30", "no"}


def test_info_of_a_name_that_yaml_took_for_something_else_is_refused(
    run_module: Callable[..., dict[str, Any]],
) -> None:
    result = run_module("qos_info", names=["a@x", 5.1], command="/bin/true")
    assert result["failed"]
    assert result["msg"].startswith("names: 5.1 is the number 5.1 to YAML")


TIMES = (
    """
90s|1sec|5m|30min|2h|1d|1w|1h 30min|1h30min|1 h|2h |366d|367d|0s|0h 0s|999999999s|1000000000s|53w
|-1h|1.5h|h|1x|1h,30min|1h  30min|1H|2hours|\uff11h|1h\n
""".strip("\n")
    .replace("\n|", "|")
    .split("|")
)


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_for_the_module_what_it_is_for_the_agent(text: str) -> None:
    """Or check mode would promise what the agent refuses."""
    try:
        agents: int | None = parse_duration(text)
    except ValueError:
        agents = None
    assert qos_user.seconds_of(text) == agents
