"""A process that has fewer capabilities than the agent, in a sandbox that hides it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.health.report import Report
from vff_qos.runfile import write_report

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

#: As ProtectProc=invisible of the collection's unit; the agent's account without what it may more.
HIDDEN = (
    "mount -t proc -o hidepid=invisible proc /proc && "
    'exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all "$@"'
)
LOOK = """import os, sys
from vff_qos.runfile import read_report
assert not os.path.exists(f"/proc/{sys.argv[2]}/cmdline"), "the agent is not hidden"
print(read_report(sys.argv[1]) is not None)"""


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)", "follow"]
    with subprocess.Popen(command) as started:
        yield started
        started.kill()


def seen_from_the_sandbox(directory: Path, pid: int, written: float) -> str:
    write_report(str(directory), Report(pid, written, [], 0, {}))
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    look = [sys.executable, "-c", LOOK, str(directory), str(pid)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", HIDDEN, "sh", *look],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.strip()


def test_an_agent_that_cannot_be_seen_runs(agent: subprocess.Popen[bytes]) -> None:
    directory = Path("/run") / f"vff-qos-hidden-{os.getpid()}"
    directory.mkdir()
    try:
        now_s = time.time()
        assert seen_from_the_sandbox(directory, agent.pid, now_s) == "True"
        assert seen_from_the_sandbox(directory, agent.pid, now_s - 60) == "False"
        agent.kill()
        agent.wait()
        assert seen_from_the_sandbox(directory, agent.pid, time.time()) == "False"
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
