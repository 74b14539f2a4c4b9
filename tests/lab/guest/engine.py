"""Run the engine with a config file until it is stopped: engine.py CONFIG.json

Tells whoever started it (systemd, on the node) that it is ready once every inbound listens.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def listening() -> set[int]:
    """The TCP ports that something in our namespace listens on."""
    ports = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, _remote, state = line.split()[1:4]
            if state == "0A":
                ports.add(int(local.rsplit(":", 1)[1], 16))
    return ports


def report_ready(config: str) -> None:
    """Wait until every inbound listens (without knocking: the engine logs that); say so."""
    ports = {int(str(inbound["port"]).split("-")[0]) for inbound in json.loads(config)["inbounds"]}
    while not ports <= listening():
        time.sleep(0.2)
    address = os.environ["NOTIFY_SOCKET"]
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(address)
        notify.send(b"READY=1")
        # Stay until systemd has read it: the word of a process that is gone does not count.
        socket.send_fds(notify, [b"BARRIER=1"], [writer])
    os.close(writer)
    os.read(reader, 1)


def main() -> None:
    config = Path(sys.argv[1]).read_text()
    if "NOTIFY_SOCKET" in os.environ:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leave no zombie
        if os.fork() == 0:  # a process: the engine's call below never lets go of the interpreter
            report_ready(config)
            os._exit(0)
    import xray

    xray.startFromJSON(config)  # until SIGTERM; exits with 23, silently, if the config is refused


if __name__ == "__main__":
    main()
