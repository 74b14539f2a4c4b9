"""Run the engine with a config file until it is stopped: engine.py CONFIG.json

Tells systemd that it is ready once every TCP port of the config accepts connections.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def report_ready(config: str) -> None:
    """Knock at the inbounds until they answer, then notify systemd."""
    ports = [int(str(inbound["port"]).split("-")[0]) for inbound in json.loads(config)["inbounds"]]
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
    address = os.environ["NOTIFY_SOCKET"]
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", address)
        # Stay until systemd has read it: the word of a process that is gone does not count.
        socket.send_fds(notify, [b"BARRIER=1"], [writer], 0, address)
    os.close(writer)
    os.read(reader, 1)


def main() -> None:
    config = Path(sys.argv[1]).read_text()
    if "NOTIFY_SOCKET" in os.environ:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leave no zombie
        if os.fork() == 0:  # a process: the engine's call below never lets go of the interpreter
            report_ready(config)
            os._exit(0)
    sys.path.insert(0, "/opt/xray")
    import xray

    xray.startFromJSON(config)  # until SIGTERM; exits with 23, silently, if the config is refused


if __name__ == "__main__":
    main()
