"""Break what a job names and wait until the agent has mended it; runs on the node.

Reads a job (JSON) on standard input: {"timeout_s", "breaks": [[name, shell command,
shell test or null]]}. Writes {name: {"took_s": seconds or null, "differs": [line]}}; mended is what
passes the test or, without one, is as it was before.
"""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
import time

# Numbers and addresses of devices do not matter. wan7 is wan0, renamed.
STATE = r"""
exec 2>&1
{
ip -br link | awk '{print "link", $1, $2}'
tc qdisc show
for dev in $(ls /sys/class/net); do
    tc class show dev $dev | sed "s/^/$dev /"
    tc filter show dev $dev | sed "s/^/$dev /"
    tc filter show dev $dev ingress | sed "s/^/$dev ingress /"
done
nft -s list ruleset
conntrack -L 2>/dev/null | grep -o 'mark=135[89][0-9]*' | sort -u
} | sed s/wan7/wan0/g
"""


def state() -> list[str]:
    """Everything that has to be as before, in an order of its own."""
    done = subprocess.run(["sh", "-c", STATE], capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())


def mend(
    command: str, test: str | None, healthy: list[str], timeout_s: float
) -> tuple[float | None, list[str]]:
    """Run `command`; seconds until what was broken is mended, and the last difference."""
    subprocess.run(["sh", "-euc", command], check=True, stdout=sys.stderr)
    broken = time.monotonic()
    while True:
        looked = time.monotonic()
        if test:
            mended = subprocess.run(["sh", "-c", test]).returncode == 0
        else:
            now = state()
            mended = now == healthy
        if mended:
            return looked - broken, []
        if looked - broken > timeout_s:
            lines = difflib.unified_diff(healthy, state(), "before", "now", lineterm="", n=0)
            return None, list(lines)


def main() -> None:
    job = json.load(sys.stdin)
    healthy = state()
    report = {}
    for name, command, test in job["breaks"]:
        took_s, differs = mend(command, test, healthy, job["timeout_s"])
        report[name] = {"took_s": took_s, "differs": differs}
        if took_s is None:
            break
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
