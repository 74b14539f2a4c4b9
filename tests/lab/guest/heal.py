"""Break something and wait until the agent has mended it; runs on the node.

Reads a job (JSON) on standard input: {"command": what breaks it, "test": a shell command or null,
"healthy": lines of a state, "timeout_s"}, and in any case "forget": a regular expression of what
does not matter. Writes {"took_s": seconds or null, "differs": lines}. Mended is what passes the
test or, without one, what is as it was. Without a command it writes the state of now.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import time

#: Looking costs an emulated node seconds of its processors, which the repair needs, too.
PAUSE_S = 1.0
#: Numbers and addresses of devices do not matter, nor do leaves of fq_codel. wan7 is wan0, renamed.
FORGET = [
    (r"wan7", "wan0"),
    (r"\bindex \d+", ""),
    (r"(?m)^class fq_codel .*\n", ""),
]
#: Classes that no user has at the moment: they come back in slices, while the agent has time.
SPARE = re.compile(r"class htb (\S+) .* prio 7 ")
OUR_MARK = re.compile(r"mark=135[89]\d*")


def output(*command: str, stdin: str = "", errors: int = subprocess.STDOUT) -> str:
    """What a command says, errors too: among the rest, or where ``errors`` says."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=errors, text=True)
    for pattern, text in FORGET:
        done.stdout = re.sub(pattern, text, done.stdout)
    return done.stdout


def state() -> list[str]:
    """Everything that has to be as before, in an order of its own."""
    lines = [
        *(" ".join(line.split()[:2]) for line in output("ip", "-br", "link").splitlines()),
        *output("tc", "qdisc", "show").splitlines(),
        *output("nft", "-s", "list", "ruleset").splitlines(),
        # How many there are it says before it has written the last lines, in the middle of one.
        *set(OUR_MARK.findall(output("conntrack", "-L", errors=subprocess.DEVNULL))),
    ]
    for dev in os.listdir("/sys/class/net"):
        looks = (
            f"class show dev {dev}",
            f"filter show dev {dev}",
            f"filter show dev {dev} parent 5100:",
            f"filter show dev {dev} parent 5101:",
            f"filter show dev {dev} egress",
            f"filter show dev {dev} ingress",
        )
        # The dump of an fw filter without handles ends with an error.
        said = output("tc", "-force", "-batch", "-", stdin="\n".join(looks))
        lines += [f"{dev.replace('wan7', 'wan0')} {line}" for line in said.splitlines()]
    spare = set(SPARE.findall("\n".join(lines)))
    return sorted(line for line in lines if not spare & set(line.split()))


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
        time.sleep(PAUSE_S)


def main() -> None:
    job = json.load(sys.stdin)
    FORGET.append((job["forget"], ""))
    if "command" not in job:
        json.dump(state(), sys.stdout)
        return
    took_s, differs = mend(job["command"], job["test"], job["healthy"], job["timeout_s"])
    json.dump({"took_s": took_s, "differs": differs}, sys.stdout)


if __name__ == "__main__":
    main()
