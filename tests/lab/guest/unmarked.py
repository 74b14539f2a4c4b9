"""How long new UDP flows of a client bear no mark: unmarked.py CLIENT SECONDS

By the events of conntrack(8).  Prints JSON, an entry for each flow that began meanwhile: its source
and destination port, and the milliseconds until its mark, or until its end if it never had one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

EVENT = re.compile(
    r"\[(?P<at>\d+\.\d+)\]\s+\[(?P<what>NEW|UPDATE|DESTROY)\].*?"
    r" sport=(?P<source>\d+) dport=(?P<port>\d+)"
)
MARK = re.compile(r" mark=[1-9]")


def main() -> None:
    client, seconds = sys.argv[1:]
    told = subprocess.run(
        ["timeout", seconds, "conntrack", "-E", "-p", "udp", "-s", client, "-o", "timestamp"]
        + ["-b", "4194304"],
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    ended = time.time()
    began: dict[tuple[int, int], float] = {}
    marked: dict[tuple[int, int], float] = {}
    for line in told.splitlines():
        event = EVENT.match(line)
        if event is None:
            continue
        flow, at = (int(event["source"]), int(event["port"])), float(event["at"])
        if event["what"] == "NEW":
            began[flow] = at
        if flow in began and (event["what"] == "DESTROY" or MARK.search(line)):
            marked.setdefault(flow, at)
    flows = [
        {"source": flow[0], "port": flow[1], "ms": 1_000 * (marked.get(flow, ended) - at)}
        for flow, at in began.items()
    ]
    print(json.dumps(flows))


if __name__ == "__main__":
    main()
