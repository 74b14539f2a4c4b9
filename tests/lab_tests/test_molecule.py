"""The molecule scenario as one test, so that `make test` ends with one summary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(3600)
def test_the_role_on_a_lab_node(capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"):
        pytest.skip("a lab node needs root and qemu-system-x86")
    command = [str(Path(sys.executable).with_name("molecule")), "test", "--no-command-borders"]
    folder = ROOT / "build/ansible_collections/vff/qos"
    last: deque[str] = deque(maxlen=30)
    # Its output is long and slow to come: show it as it comes, and its end with the failure.
    with (
        capfd.disabled(),
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as molecule,
    ):
        assert molecule.stdout is not None
        for line in molecule.stdout:
            print(line, end="", flush=True)
            last.append(line)
    if molecule.returncode:
        pytest.fail("".join(["molecule test failed:\n", *last]), pytrace=False)
