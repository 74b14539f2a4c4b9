"""What an operator sees on the node: `status`, `doctor` and the journal; runs on the node.

One process for many looks, because each login and each start of Python costs an emulated node a
second.  Reads jobs, a JSON object a line, and answers each with one:

{"run": a shell command} with what it says;
{"told": [[event, finding], ...]} with the journal's entries since the beginning, once these are
among them;
{"look": kinds, "beside": kinds} with what `status` and `doctor` find and how they end, once both
find the first and nothing but them and the second; {"within_s"} is how long it may take at most,
then it is what was seen last.
"""

from __future__ import annotations

import ctypes
import json
import queue
import subprocess
import sys
import threading
import time
from typing import Any

#: What tells of a finding, begins and ends.
EVENTS = ("degraded", "trouble", "over", "policy_refused", "policy")
#: adjtimex(2): the fields' places in struct timex, which is of longs, and the constants.
ADJ_STATUS, ADJ_MAXERROR, STA_PLL = 0x10, 0x4, 0x1
MODES, STATUS, TIMEX_LONGS = 0, 5, 26


def keep_clock() -> None:
    """The node's clock is its hypervisor's: say so to the kernel as an NTP daemon would."""
    timex = (ctypes.c_long * TIMEX_LONGS)()
    timex[MODES], timex[STATUS] = ADJ_STATUS | ADJ_MAXERROR, STA_PLL
    if ctypes.CDLL(None).adjtimex(timex):
        raise SystemExit("cannot tell the kernel that the clock is kept")


class Story:
    """The journal's entries since now."""

    def __init__(self) -> None:
        self._read: queue.Queue[dict[str, Any]] = queue.Queue()
        self.entries: list[dict[str, Any]] = []
        self._journal = subprocess.Popen(
            ["journalctl", "-q", "-f", "--no-tail", "-o", "json", f"--since=@{time.time():.6f}"]
            + [f"VFF_QOS_EVENT={event}" for event in EVENTS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._journal.stdout
        for line in self._journal.stdout:
            self._read.put(json.loads(line))

    def close(self) -> None:
        self._journal.kill()
        self._journal.wait()

    def until(self, wanted: list[list[str]], within_s: float) -> list[dict[str, Any]]:
        """All entries, once the wanted ones are among them or the time is over."""
        end = time.monotonic() + within_s
        while not all(one in self._told() for one in wanted):
            try:
                self.entries.append(self._read.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        return self.entries

    def _told(self) -> list[list[str]]:
        return [[one["VFF_QOS_EVENT"], one.get("VFF_QOS_FINDING", "")] for one in self.entries]


def look() -> dict[str, Any]:
    """`status` and `doctor`, both at once: {name: what it found} and {name + "_code"}."""
    commands = {"status": ["--json"], "doctor": ["--json", "--no-canary"]}
    started = {
        name: subprocess.Popen(["vff-qos", name, *words], stdout=subprocess.PIPE, text=True)
        for name, words in commands.items()
    }
    seen: dict[str, Any] = {}
    for name, process in started.items():
        said, _ = process.communicate()
        seen[name], seen[f"{name}_code"] = json.loads(said), process.returncode
    return seen


def kinds(found: dict[str, Any]) -> set[str]:
    return {one["kind"] for one in found["findings"] if one["level"] != "OK"}


def look_until(wanted: list[str], beside: list[str], within_s: float) -> dict[str, Any]:
    """What the agent tells of itself is some seconds old: look again where something is amiss."""
    end = time.monotonic() + within_s
    while True:
        seen = look()
        found = [kinds(seen[name]) for name in ("status", "doctor")]
        is_so = all({*wanted} <= one <= {*wanted, *beside} for one in found)
        if is_so or time.monotonic() > end:
            return seen


def run(command: str) -> str:
    done = subprocess.run(["sh", "-euc", command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command!r} failed with {done.returncode}")
    return done.stdout


def main() -> None:
    keep_clock()
    story = Story()
    try:
        for line in sys.stdin:
            job = json.loads(line)
            if "run" in job:
                answer: Any = run(job["run"])
            elif "told" in job:
                answer = story.until(job["told"], job["within_s"])
            else:
                answer = look_until(job["look"], job["beside"], job["within_s"])
            print(json.dumps(answer), flush=True)
    finally:
        story.close()


if __name__ == "__main__":
    main()
