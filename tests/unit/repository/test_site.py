"""The playbook `vff.qos.site`: who is reached when, and what stops a roll-out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_cores import OLDEST, RELEASES, bin_of
from checkout import ROLE, ROOT

WANTED = list(RELEASES) if os.environ.get("VFF_QOS_PLATFORMS") else [OLDEST]
HERE = Path(sys.executable).parent
#: In the role's place: a node whose `vff-qos status` ends with the host's `status`.
TASKS = [
    {
        "name": "Ask",
        "ansible.builtin.command": {"argv": ["sh", "-c", "exit {{ status | default(0) }}"]},
        "register": "__qos_status",
        "failed_when": "__qos_status.rc | default(0) not in [0, 1]",
    }
]


def inventory(path: Path, count: int, **statuses: int) -> Path:
    """``count`` hosts, all of them this machine, n1 to n9 and so on."""
    hosts: dict[str, dict[str, int]] = {f"n{i}": {} for i in range(1, count + 1)} | {
        name: {"status": status} for name, status in statuses.items()
    }
    every = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    path.write_text(json.dumps({"all": {"vars": every, "hosts": hosts}}))
    return path


class Site:
    """The playbook as it is, with a role that only has a status."""

    def __init__(self, directory: Path, commands: Path) -> None:
        self.directory, self.commands = directory, commands
        tree = directory / "ansible_collections" / "vff" / "qos"
        (tree / "roles/qos/tasks").mkdir(parents=True)
        shutil.copytree(ROOT / "playbooks", tree / "playbooks")
        shutil.copytree(ROLE / "defaults", tree / "roles/qos/defaults")
        shutil.copytree(ROOT / "meta", tree / "meta")
        shutil.copy(ROOT / "galaxy.yml", tree)
        (tree / "roles/qos/tasks/main.yml").write_text(yaml.safe_dump(TASKS))

    def run(self, hosts: Path, *words: str) -> tuple[int, list[list[str]], str]:
        """(exit status, hosts by batch in which something was asked, output)"""
        done = subprocess.run(
            [self.commands / "ansible-playbook", "-i", hosts, "vff.qos.site", *words],
            cwd=self.directory,
            capture_output=True,
            text=True,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")},
                "ANSIBLE_COLLECTIONS_PATH": str(self.directory),
                "ANSIBLE_HOME": str(self.directory / "home"),
            },
        )
        batches = [
            sorted(set(re.findall(r"^(?:changed|fatal|skipping): \[(n\d+)\]", part, re.M)))
            for part in done.stdout.split("\nPLAY [")[1:]
        ]
        return done.returncode, batches, done.stdout + done.stderr


@pytest.fixture(params=WANTED)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    commands = bin_of(request.param)
    if commands is None:
        pytest.skip(f"no Python here for ansible-core {request.param}")
    return Site(tmp_path, commands)


def names(first: int, last: int) -> list[str]:
    return sorted(f"n{i}" for i in range(first, last + 1))


def test_one_host_then_a_quarter_then_the_rest(site: Site) -> None:
    code, batches, said = site.run(inventory(site.directory / "hosts.json", 8))
    assert (code, batches) == (0, [["n1"], names(2, 3), names(4, 8)]), said


def test_the_next_batch_begins_only_where_all_is_well(site: Site) -> None:
    hosts = inventory(site.directory / "hosts.json", 8, n3=1)
    code, batches, said = site.run(hosts)
    assert (code, batches) == (2, [["n1"], names(2, 3)]), said
    assert "with -e qos_rollout_worst_status=1 as it is" in said
    code, batches, said = site.run(hosts, "-e", "qos_rollout_worst_status=1")
    assert (code, batches[-1]) == (0, names(4, 8)), said


def test_after_the_last_batch_a_status_of_1_is_no_failure(site: Site) -> None:
    code, batches, said = site.run(inventory(site.directory / "hosts.json", 1, n1=1))
    assert (code, batches[0]) == (0, ["n1"]), said


def test_a_host_that_fails_ends_the_roll_out(site: Site) -> None:
    hosts = inventory(site.directory / "hosts.json", 8, n2=2)
    code, batches, said = site.run(hosts)
    assert (code, batches) == (2, [["n1"], names(2, 3)]), said
    words = ["-e", "qos_rollout_max_fail_percent=50", "-e", "qos_rollout_batches=2"]
    code, batches, said = site.run(hosts, *words)
    assert (code, [len(batch) for batch in batches]) == (2, [2, 2, 2, 2]), said


@pytest.mark.parametrize("words", [["-e", "qos_state=disabled"], ["-e", "qos_state=absent"]])
def test_the_ways_out_go_to_all_at_once_and_nobody_stops_them(site: Site, words: list[str]) -> None:
    hosts = inventory(site.directory / "hosts.json", 8, n1=2, n2=2)
    code, batches, said = site.run(hosts, *words)
    assert (code, batches) == (2, [names(1, 8)]), said


def test_a_check_run_asks_all(site: Site) -> None:
    hosts = inventory(site.directory / "hosts.json", 8, n1=2)
    _code, batches, said = site.run(hosts, "--check")
    assert batches == [names(1, 8)], said


@pytest.mark.parametrize("words", [[], ["--limit", "node"], ["-e", "qos_state=disabled"]])
def test_an_inventory_without_hosts_is_an_error(site: Site, words: list[str]) -> None:
    code, _batches, said = site.run(inventory(site.directory / "hosts.json", 0), *words)
    assert code != 0
    assert "there is no host in the inventory" in " ".join(said.split())


def test_playbook_and_role_have_the_same_defaults() -> None:
    defaults: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    text = (ROOT / "playbooks/site.yml").read_text()
    found = dict(re.findall(r"(qos_rollout_\w+) \| default\((.*?)\)(?= |$)", text, re.M))
    assert {name: yaml.safe_load(value) for name, value in found.items()} == {
        name: value for name, value in defaults.items() if name.startswith("qos_rollout_")
    }


#: In the agent's place: ends well only once it was asked on all hosts.
BARRIER = """#!/bin/sh
[ "$1" = suspend ] || exit 9
touch "{directory}/asked.$$"
for second in $(seq 400); do
    [ "$(ls {directory} | grep -c asked)" -lt {count} ] || {{ echo suspended; exit 0; }}
    sleep 1
done
echo "only $(ls {directory} | grep -c asked) of {count} hosts were asked" >&2
exit 1
"""
#: Nothing is installed: there are no units to stop.
SYSTEMCTL = """#!/bin/sh
shift 2
for unit; do printf 'Id=%s\\nLoadState=not-found\\nActiveState=inactive\\n\\n' "$unit"; done
"""


def test_make_qos_disable_asks_no_host_after_another(tmp_path: Path) -> None:
    count = 25
    for name, text in (("agent", BARRIER), ("systemctl", SYSTEMCTL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text.format(directory=tmp_path, count=count)
                                             if name == "agent" else text)  # fmt: skip
        (tmp_path / "bin" / name).chmod(0o755)
    hosts = inventory(tmp_path / "hosts.json", count)
    done = subprocess.run(
        [
            "make",
            "qos-disable",
            f"INVENTORY={hosts}",
            f"EXTRA=-e __qos_command={tmp_path}/bin/agent",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MAKE"))},
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("asked.*"))) == count
