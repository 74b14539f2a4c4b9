"""Molecule's scenarios as one test, so that `make test` ends with one summary."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Debian 12 with two queues, Debian 13 with one.
SCENARIOS = ("default", "trixie")
# How ansible tells of a failed task or loop item, with colours or without.
FAILED = re.compile(r"(?:\x1b\[[0-9;]*m)*(?:failed|fatal): (.*?) => (?=\{)")


def failure(line: str) -> str:
    """What failed and what it said, if `line` tells of a failure; else empty."""
    told = FAILED.match(line)
    if not told:
        return ""
    result, _end = json.JSONDecoder().raw_decode(line, told.end())
    words = [str(result[key]) for key in ("msg", "stdout", "stderr") if result.get(key)]
    return "\n".join([f"{told[1]}:", *words, ""])


def run(scenario: str) -> str:
    """Run a scenario of molecule; returns why it failed, empty if it did not."""
    command = [
        str(Path(sys.executable).with_name("molecule")),
        *("test", "--scenario-name", scenario, "--no-command-borders"),
    ]
    # What molecule knows of its node is this checkout's: by default all checkouts share it.
    environment = {"MOLECULE_EPHEMERAL_DIRECTORY": str(ROOT / "build" / "molecule" / scenario)}
    last: deque[str] = deque(maxlen=10)
    failures = []
    with subprocess.Popen(
        command,
        cwd=ROOT / "build/ansible_collections/vff/qos",
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as molecule:
        assert molecule.stdout is not None
        for line in molecule.stdout:
            print(f"{scenario:8} | {line}", end="", file=sys.stderr, flush=True)
            last.append(line)
            failures.append(failure(line))
    if not molecule.returncode:
        return ""
    return "".join([f"molecule test of {scenario} failed:\n", *last, *failures])


@pytest.mark.alone
@pytest.mark.timeout(3600)
def test_the_role_on_lab_nodes(capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"):
        pytest.skip("lab nodes need root and qemu-system-x86")
    # Side by side: each has one core's worth of work.  Their output is long and slow to come: it is
    # shown as it comes, and what failed at the end.  What a process of pytest-xdist writes to
    # standard output is seen nowhere.
    with capfd.disabled(), ThreadPoolExecutor(len(SCENARIOS)) as pool:
        said = list(pool.map(run, SCENARIOS))
    if any(said):
        pytest.fail("\n".join(filter(None, said)), pytrace=False)
