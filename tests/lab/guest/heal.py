"""Break something and wait until the agent has mended it; runs on the node.

Reads a job (JSON) on standard input: {"command": what breaks it, "test": a shell command or null,
"healthy": lines of a state, "timeout_s"}. Writes {"took_s": seconds or null, "differs": lines}.
Mended is what passes the test or, without one, what is as it was. Without a command it writes the
state of now.
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
tc qdisc show | sed 's/ direct_packets_stat [0-9]*//'
for dev in $(ls /sys/class/net); do
    tc class show dev $dev | grep "^class htb" | sed "s/^/$dev /"
    tc filter show dev $dev | sed "s/^/$dev /"
    tc filter show dev $dev ingress | sed "s/index [0-9]* //; s/^/$dev ingress /"
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
        tested = subprocess.run(["sh", "-c", test]).returncode == 0 if test else None
        mended = state() == healthy if tested is None else tested
        took_s = time.monotonic() - broken  # of looking, too
        if mended:
            return took_s, []
        if took_s > timeout_s:
            lines = difflib.unified_diff(healthy, state(), "before", "now", lineterm="", n=0)
            return None, list(lines)


def main() -> None:
    job = json.load(sys.stdin)
    if "command" not in job:
        json.dump(state(), sys.stdout)
        return
    took_s, differs = mend(job["command"], job["test"], job["healthy"], job["timeout_s"])
    json.dump({"took_s": took_s, "differs": differs}, sys.stdout)


if __name__ == "__main__":
    main()
