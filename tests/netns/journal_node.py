"""A node whose agent and commands write into a journal of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from .engine_node import JOURNALD
from .harness import Node, eventually, run


class Told(Node):
    """A node whose agent and commands write into a journal of its own, and its catalog."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        # The catalog's directories are this machine's: others take their place.
        hide = "mount -t tmpfs tmpfs /var/lib/systemd; mount -t tmpfs tmpfs /usr/local/lib\n"
        self.journald = subprocess.Popen(["unshare", "--mount", "sh", "-euc", hide + JOURNALD])
        process = Path(f"/proc/{self.journald.pid}")
        eventually(lambda: (process / "comm").read_text().startswith("systemd-journal"))
        eventually((process / "root/run/systemd/journal/socket").exists)
        self.root = process / "root"
        self.within = [
            "nsenter", f"--mount={process}/ns/mnt", "env", "JOURNAL_STREAM=1:1",
        ]  # fmt: skip

    def command(self, *words: str) -> list[str]:
        return [*self.within, *super().command(*words)]

    def start(self) -> None:
        before = len(self.entries("VFF_QOS_EVENT=started"))
        self.agent = subprocess.Popen(self.command("follow"), stderr=subprocess.PIPE, text=True)
        eventually(lambda: len(self.entries("VFF_QOS_EVENT=started")) > before, 10.0)

    def journalctl(self, *words: str) -> str:
        return run(*self.within, "journalctl", "--no-pager", "-q", *words)

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Entries as JSON, the first before."""
        run(*self.within, "journalctl", "--sync")
        return [json.loads(line) for line in self.journalctl("-o", "json", *matches).splitlines()]

    def story(self, email: str) -> list[str]:
        """The events that a user's name finds, in their order."""
        return [entry["VFF_QOS_EVENT"] for entry in self.entries(f"VFF_QOS_EMAIL={email}")]

    def set(self, text: str) -> None:
        """Add settings."""
        with (self.directory / "settings.yml").open("a") as file:
            file.write(text)

    def close(self) -> None:
        self.stop()
        self.journald.kill()
        self.journald.wait()
