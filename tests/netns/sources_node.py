"""A node with several sources of identities."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from .harness import Client, Node, eventually, status


class SourcesNode(Node):
    """A node with two logs and a webhook, and inbounds on two ports."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.second = directory / "second.log"
        self.second.touch()
        self.socket = directory / "hook"
        listener = socket.socket()
        listener.bind(("127.0.0.1", 4431))
        listener.listen(64)
        self.listeners.append(listener)
        self.single = (directory / "settings.yml").read_text().replace("[4430]", "[4430, 4431]")
        self.set_sources(
            f"{{type: file, path: {self.log}}}, {{type: file, name: second, path: {self.second}}}, "
            f"{{type: webhook, listen: 'unix:{self.socket}'}}"
        )

    def set_sources(self, sources: str) -> None:
        """Other sources, for the next start."""
        lines = self.single.splitlines()
        kept = [line for line in lines if not line.startswith("xray_access_log_path")]
        text = "\n".join([*kept, f"sources: [{sources}]", ""])
        (self.directory / "settings.yml").write_text(text)

    def start(self) -> None:
        """What cannot be read is told before it says that it follows."""
        self.agent = subprocess.Popen(
            self.command("follow"),
            stderr=(self.directory / "told").open("w"),
            text=True,
        )
        eventually(lambda: "follows" in (self.directory / "told").read_text())

    @property
    def told(self) -> str:
        """What the agent has said until now."""
        return (self.directory / "told").read_text()

    def post(self, client: Client, email: str) -> None:
        """One event of the engine."""
        event = {"email": email, "network": "tcp", "source": f"{client.text}:{client.port}",
                 "inboundTag": "in", "ts": int(time.time())}  # fmt: skip
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        connection.request("POST", "/", json.dumps(event))
        assert connection.getresponse().status == 200
        connection.close()

    def write_second(self, *lines: bytes) -> None:
        """Append to the second log."""
        with self.second.open("ab") as file:
            file.write(b"".join(lines))

    def source(self, name: str) -> dict[str, Any]:
        """What ``status`` says of one of them."""
        (found,) = [one for one in status(self)["follower"]["sources"] if one["name"] == name]
        return dict(found)
