"""What the role says of limits that are in the kernel of a node whose agent is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from checkout import ROLE

from .harness import run


def ask(directory: Path) -> tuple[int, str]:
    """Run the role's own tasks here; returns the exit status and what was said."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"qos_state": "disabled", "__qos_command": "/usr/local/sbin/vff-qos"},
        "tasks": [{"ansible.builtin.include_tasks": str(ROLE / "tasks" / "left_in_kernel.yml")}],
    }
    (directory / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml"],
        cwd=directory,
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false"},
    )
    return done.returncode, done.stdout


def test_our_device_is_found_whatever_its_name_is(tmp_path: Path) -> None:
    run("ip", "link", "add", "other", "type", "ifb")
    assert ask(tmp_path)[0] == 0
    run("ip", "link", "add", "older7", "type", "ifb")
    run("ip", "link", "set", "older7", "alias", "vff-qos")
    code, said = ask(tmp_path)
    assert code == 2
    assert "older7 (our IFB device) is in the kernel but /usr/local/sbin/vff-qos" in said
    assert "qos_state=disabled again" in said
