"""What the preflight reads from a host."""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkout import PLUGINS, ROLE
from vff_qos.config import Paths
from vff_qos.core.settings import LEAVES
from vff_qos.disabled import Record, read_record, write_record

Plugin = Callable[[str], ModuleType]


@pytest.fixture
def preflight(plugin: Plugin) -> ModuleType:
    return plugin("modules/qos_preflight")


@pytest.mark.parametrize(
    ("name", "version", "family"),
    [
        ("debian", "12", "debian"),
        ("debian", "13", "debian"),
        ("ubuntu", "22.04", "debian"),
        ("ubuntu", "24.04", "debian"),
        ("rocky", "9.4", "redhat"),
        ("debian", "11", None),
        ("ubuntu", "20.04", None),
        ("rhel", "8.10", None),
        ("alpine", "3.20", None),
    ],
)
def test_only_supported_systems_pass(
    preflight: ModuleType, name: str, version: str, family: str | None
) -> None:
    text = f'NAME="x"\n# a comment\nID={name}\nVERSION_ID="{version}"\n'
    found, problem = preflight.system_family(preflight.parse_os_release(text))
    assert found == family
    assert (problem is None) == (family is not None)
    if problem:
        assert problem.startswith(f"{name} {version} is not one of Debian 12")


def test_debian_testing_has_no_version_and_passes(preflight: ModuleType) -> None:
    text = 'ID=debian\nVERSION_CODENAME=forky\nPRETTY_NAME="Debian GNU/Linux forky/sid"\n'
    assert preflight.system_family(preflight.parse_os_release(text)) == ("debian", None)


@pytest.mark.parametrize("name", ["ubuntu", "rhel", "centos"])
def test_elsewhere_a_missing_version_is_said_to_be_missing(
    preflight: ModuleType, name: str
) -> None:
    found, problem = preflight.system_family({"ID": name})
    assert found is None
    assert problem.startswith(f"{name} without a VERSION_ID (/etc/os-release) is not one of")


def test_a_module_may_be_loaded_built_in_or_on_the_disk(plugin: Plugin) -> None:
    features = plugin("module_utils/kernel_features")
    listed = features.listed_modules(
        "sch_htb 28672 0 - Live 0x0000000000000000\n",
        ["tcp_cubic", "ifb"],
        "kernel/net/sched/act_mirred.ko\n",
        "kernel/net/netfilter/nf_tables.ko.xz: kernel/lib/libcrc32c.ko.xz\n"
        "kernel/net/sched/cls-fw.ko.zst:\n",
    )
    assert listed == {"sch_htb", "tcp_cubic", "ifb", "act_mirred", "nf_tables", "cls_fw"}


def test_what_the_role_asks_for_can_be_tried(plugin: Plugin) -> None:
    """Every module of the role's list, and every leaf, has an attempt of its own."""
    features = plugin("module_utils/kernel_features")
    text = (ROLE / "vars" / "main.yml").read_text()
    wanted = re.findall(r"'((?:ifb|sch_\w|cls_|act_|nf_|nft_)\w*)'", text)
    leaves = [f"sch_{leaf}" for leaf in LEAVES if leaf != "pfifo"]
    assert len(wanted) > 10
    assert {*wanted, *leaves} - {"sch_"} <= {*features.ATTEMPTS, *features.NETFILTER}


QDISCS = [
    ("noqueue", 0, "root", (None, None)),
    ("mq", 0, "root", (None, None)),
    ("htb", 0x5100, "root", (None, None)),
    ("tbf", 0x5101, "root", (None, None)),
    ("tbf", 0x5102, "root", ("tbf 5102:", None)),
    ("fq", 0x8001, "root", ("fq 8001:", None)),
    ("hfsc", 1, "root", ("hfsc 1:", None)),
    ("clsact", 0xFFFF, "ingress", (None, None)),
    ("ingress", 0xFFFF, "ingress", (None, "ingress")),
]


@pytest.mark.parametrize(("kind", "major", "hook", "expected"), QDISCS)
def test_what_has_a_handle_was_put_there_by_somebody(
    preflight: ModuleType,
    plugin: Plugin,
    kind: str,
    major: int,
    hook: str,
    expected: tuple[str | None, str | None],
) -> None:
    qdisc = plugin("module_utils/rtnetlink").TopQdisc(2, kind, major, hook)
    assert preflight.foreign_qdiscs([qdisc], 2, {0x5100}) == expected
    assert preflight.foreign_qdiscs([qdisc], 3, {0x5100}) == (None, None)


class Module:
    """As much of AnsibleModule as the functions use."""

    def __init__(self, **params: object) -> None:
        self.params = params

    def run_command(
        self, command: list[str], environ_update: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **(environ_update or {})}
        )
        return done.returncode, done.stdout, done.stderr


def interpreter(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def look(preflight: ModuleType, python: str, *imports: str) -> tuple[Any, list[str]]:
    problems: list[str] = []
    found = preflight.check_python(Module(python=python, imports=list(imports)), problems)
    return found, problems


DISTRIBUTION = "/usr/bin/python3"


def test_an_interpreter_that_sees_the_distributions_packages_passes(
    preflight: ModuleType, tmp_path: Path
) -> None:
    other = interpreter(tmp_path / "python", f'exec {DISTRIBUTION} "$@"')
    for python in (DISTRIBUTION, other):
        (version, missing), problems = look(preflight, python, "nftables", "systemd.journal")
        assert (missing, problems) == ([], [])
        assert version == ".".join(map(str, _version(DISTRIBUTION)))


def test_a_package_that_is_not_installed_yet_is_no_problem(preflight: ModuleType) -> None:
    (_version, missing), problems = look(preflight, DISTRIBUTION, "json", "no_such_module")
    assert (missing, problems) == (["no_such_module"], [])


@pytest.mark.parametrize("imports", [("nftables", "systemd.journal", "yaml"), ("no_such_module",)])
def test_an_interpreter_that_will_not_see_the_packages_is_refused(
    preflight: ModuleType, tmp_path: Path, imports: tuple[str, ...]
) -> None:
    """As RHEL 9's python3.11: the bindings are installed or can be, but for another Python."""
    alone = interpreter(tmp_path / "python", f'exec {DISTRIBUTION} -S "$@"')
    (_version, missing), (problem,) = look(preflight, alone, *imports)
    assert missing == list(imports)
    assert problem.startswith(f"{alone} (qos_python, Python ")
    assert f"cannot import {', '.join(imports)}" in problem
    assert f"packages are made for {DISTRIBUTION} (Python " in problem
    assert f"{alone} -m pip install " in problem


@pytest.mark.parametrize("line", ["echo hello", "exit 3", "echo '[1]'", "echo '{}'"])
def test_what_is_no_python_is_refused_in_one_sentence(
    preflight: ModuleType, tmp_path: Path, line: str
) -> None:
    other = interpreter(tmp_path / "python", line)
    assert look(preflight, other, "yaml")[1] == [f"{other} (qos_python) is no Python interpreter"]


def test_an_interpreter_that_talks_at_its_start_is_understood(
    preflight: ModuleType, tmp_path: Path
) -> None:
    chatty = interpreter(tmp_path / "python", f'echo "welcome"\nexec {DISTRIBUTION} "$@"')
    assert look(preflight, chatty, "json")[1] == []


def _version(python: str) -> list[int]:
    code = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version: list[int] = json.loads(done.stdout)
    return version


FOR_NODES = [*(PLUGINS / "modules").glob("*.py"), *(PLUGINS / "module_utils").glob("*.py")]


@pytest.mark.parametrize("path", FOR_NODES, ids=lambda path: path.stem)
def test_what_runs_before_us_on_a_node_is_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_an_account_has_a_group_and_nobody_has_none(preflight: ModuleType) -> None:
    root = preflight.account("root")
    assert root["group"] == "root"
    assert root["home"] == os.path.expanduser("~root")
    assert preflight.account("no-such-account") == {}


RECORD = {"who": "carol", "when": "2026-07-01 02:03", "why": "ticket 4711"}


def by_hand(
    preflight: ModuleType, path: Path, override: bool = False
) -> tuple[bool, list[str], list[str]]:
    """(whether it is disabled, problems, notes)"""
    problems: list[str] = []
    notes: list[str] = []
    module = Module(disabled_file=str(path), override_disable=override)
    return preflight.check_disabled(module, problems, notes), problems, notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(RECORD), "by carol at 2026-07-01 02:03 (ticket 4711)"),
        (json.dumps({**RECORD, "why": ""}), "by carol at 2026-07-01 02:03"),
        ("", "by somebody ({path} cannot be read)"),
        ('{"who": "carol"}', "by somebody ({path} cannot be read)"),
        ("[]", "by somebody ({path} cannot be read)"),
    ],
)
def test_what_somebody_disabled_by_hand_is_not_undone_unasked(
    preflight: ModuleType, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "disabled-by-hand"
    assert by_hand(preflight, path) == (False, [], [])
    path.write_text(text)
    disabled, (problem,), notes = by_hand(preflight, path)
    assert disabled and notes == []
    assert problem == (
        f"this node was disabled by hand {said.format(path=path)}; 'vff-qos enable' on it ends "
        "that, or -e qos_override_disable=true"
    )
    disabled, problems, (note,) = by_hand(preflight, path, override=True)
    assert disabled and problems == []
    assert said.format(path=path) in note


def test_the_preflight_reads_what_the_agent_writes(preflight: ModuleType, tmp_path: Path) -> None:
    paths = Paths(settings=str(tmp_path / "settings.yml"))
    write_record(paths, Record(**RECORD))
    said = preflight.disabled_by_hand(paths.disabled)
    assert f"disabled by hand {said}" == str(read_record(paths))


def refusal(preflight: ModuleType, path: Path, known: int) -> list[str]:
    problems: list[str] = []
    preflight.check_state(Module(state_file=str(path), state_schema=known), problems)
    return problems


def test_a_state_of_a_newer_version_is_refused_before_anything_is_changed(
    preflight: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    assert refusal(preflight, path, 6) == []
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA user_version=7")
    # While somebody has it open the number is in the log alone; afterwards in the file.
    assert path.read_bytes()[60:64] != (7).to_bytes(4, "big")
    (problem,) = refusal(preflight, path, 6)
    assert f"{path} has schema 7, and this one knows 6" in problem
    assert refusal(preflight, path, 7) == []
    db.close()
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]
    assert len(refusal(preflight, path, 6)) == 1
    # Looking makes no files that the agent could not write.
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]
    path.write_bytes(b"no database" * 20)
    assert refusal(preflight, path, 6) == []


@pytest.mark.parametrize(
    ("said", "running"),
    [("active\nactive\n", True), ("active\ninactive\n", False), ("active\n", False), ("", False)],
)
def test_units_run_if_all_of_them_do(preflight: ModuleType, said: str, running: bool) -> None:
    class Host(Module):
        def get_bin_path(self, name: str) -> str:
            return name

        def run_command(
            self, command: list[str], environ_update: dict[str, str] | None = None
        ) -> tuple[int, str, str]:
            assert command == ["systemctl", "is-active", "a.service", "b.service"]
            return int(not running), said, ""

    assert preflight.all_run(Host(units=["a.service", "b.service"])) is running


def test_the_webhooks_socket_is_read_from_the_unit_that_the_role_writes(
    preflight: ModuleType,
) -> None:
    unit = (ROLE / "templates" / "vff-qos-webhook.socket.j2").read_text()
    assert "\nListenStream={{ path }}\n" in unit
    assert preflight.listens_at("[Socket]\nListenStream=/run/a\nListenStream=/b\n") == "/run/a /b"
    assert preflight.listens_at("") == ""
