"""The molecule scenario as two tests, so that `make test` ends with one summary.

On the older Debian all of it runs, and measures; on the newer one what another kernel, systemd and
nftables could change: the deployment, the kill switch, healing, a reboot and every transition.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# How ansible tells of a failed task or loop item, with colours or without.
FAILED = re.compile(r"(?:\x1b\[[0-9;]*m)*(?:failed|fatal): (.*?) => (?=\{)")
# What the lab says of its progress: why something failed stands after it.
PROGRESS = re.compile(r"lab: .*(?: \.\.\. \d+ s|: done in [\d.]+ s)\n?")


def failure(line: str) -> str:
    """What failed and what it said, if `line` tells of a failure; else empty."""
    told = FAILED.match(line)
    if not told:
        return ""
    result, _end = json.JSONDecoder().raw_decode(line, told.end())
    words = [str(result[key]) for key in ("msg", "stdout", "stderr") if result.get(key)]
    words = [PROGRESS.sub("", word) for word in words]
    return "\n".join([f"{told[1]}:", *words, ""])


@pytest.mark.alone
@pytest.mark.timeout(3600)
def test_the_role_on_a_lab_node(capfd: pytest.CaptureFixture[str]) -> None:
    run_scenario(capfd)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_role_on_another_debian(capfd: pytest.CaptureFixture[str]) -> None:
    run_scenario(capfd, VFF_QOS_SUITE="trixie", VFF_QOS_STEPS="short")


def run_scenario(capfd: pytest.CaptureFixture[str], **variables: str) -> None:
    """`molecule test` with these environment variables."""
    if os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"):
        pytest.skip("a lab node needs root and qemu-system-x86")
    command = [str(Path(sys.executable).with_name("molecule")), "test", "--no-command-borders"]
    # What drives the node, beside other tests: it must not wait for them.
    command = ["nice", "-n", "-5", *command]
    folder = ROOT / "build/ansible_collections/vff/qos"
    last: deque[str] = deque(maxlen=10)
    failures = []
    # Its output is long and slow to come: show it as it comes, and what failed at the end.  What a
    # process of pytest-xdist writes to standard output is seen nowhere.
    with (
        capfd.disabled(),
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | variables,
        ) as molecule,  # fmt: skip
    ):
        assert molecule.stdout is not None
        for line in molecule.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            last.append(line)
            failures.append(failure(line))
    if molecule.returncode:
        pytest.fail("".join(["molecule test failed:\n", *last, *failures]), pytrace=False)
