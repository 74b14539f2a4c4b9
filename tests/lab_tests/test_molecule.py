"""The molecule scenario as one test, so that `make test` ends with one summary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(3600)
def test_the_role_on_a_lab_node(capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"):
        pytest.skip("a lab node needs root and qemu-system-x86")
    command = [str(Path(sys.executable).with_name("molecule")), "test", "--no-command-borders"]
    # Its output is long and slow to come: show it as it comes.
    with capfd.disabled():
        done = subprocess.run(command, cwd=ROOT / "build/ansible_collections/vff/qos", check=False)
    assert done.returncode == 0, "molecule test failed; its output is above"
