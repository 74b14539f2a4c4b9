"""Modules of Ansible as Ansible runs them, on a node of these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from checkout import PLUGINS

from .harness import Node


def run_module(node: Node, module: str, check: bool = False, **arguments: object) -> dict[str, Any]:
    """What a module returns; its command knows the node's files."""
    words = node.command("COMMAND")
    options = " ".join(words[words.index("COMMAND") + 1 :])
    command = node.directory / "vff-qos"
    command.write_text(
        f'#!/bin/sh\nverb=$1; shift\nexec {sys.executable} -m vff_qos "$verb" {options} "$@"\n'
    )
    command.chmod(0o755)
    files = {"directory": str(node.directory)} if module == "qos_user" else {}
    given = {"command": str(command), "_ansible_check_mode": check, **files, **arguments}
    done = subprocess.run(
        [sys.executable, str(PLUGINS / "modules" / f"{module}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
