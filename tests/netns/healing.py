"""A node that bootstrap made whole, and whose repairs work in this kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vff_qos.kernel.packed.tc import Tc

from .harness import PLANS_WITHOUT_FILTERS, Client, Node, missing_filters, run
from .queues import use_queues

#: The goal is one second, and an idle machine needs less.  One that is busy with other things may
#: let the agent wait for longer than that; printed is what it took.
WITHIN_S = 20.0


class WholeNode(Node):
    """A node with a WAN device, a spare one, and everything that bootstrap makes."""

    def __init__(self, directory: Path, more: str = "", queues: int = 1) -> None:
        """``more`` are further settings; ``queues`` that the WAN device uses."""
        super().__init__(directory)
        settings = directory / "settings.yml"
        settings.write_text(settings.read_text().replace("if_wan: wan0", "if_wan: auto") + more)
        # As it is installed: the process is called vff-qos, its repairs are called python.
        self.program = directory / "vff-qos"
        self.program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom vff_qos.cli import main\nsys.exit(main())\n"
        )
        self.program.chmod(0o755)
        for name, address in (("wan0", "10.9.0"), ("spare0", "10.8.0")):
            made_with = ["numtxqueues", "4", "numrxqueues", "4"] if queues > 1 else []
            run("ip", "link", "add", name, *made_with, "type", "veth", "peer", "name", f"{name}p")
            if queues > 1:
                use_queues(name, queues)
            run("ip", "address", "add", f"{address}.1/24", "dev", name)
            for device in (name, f"{name}p"):
                run("ip", "link", "set", device, "up")
        run("ip", "route", "add", "default", "via", "10.9.0.2")
        self.run("bootstrap")

    def command(self, *words: str) -> list[str]:
        return [str(self.program), *super().command(*words)[3:]]


class HealingNode(WholeNode):
    """The same with its agent, and a user."""

    def __init__(self, directory: Path, more: str = "", queues: int = 1) -> None:
        super().__init__(directory, more, queues)
        self._said = b""
        self.start()
        self.client = Client("127.0.0.1", 4430)
        self.write(self.client.line("alice@x"))
        self.wait(lambda: self.mark(self.client))
        self.minor = (self.mark(self.client) or 0) & 0xFFFF

    def wait(self, check: Callable[[], object]) -> float:
        """Seconds until ``check`` is true."""
        start = time.monotonic()
        while not check():
            assert time.monotonic() - start < WITHIN_S, self.seen()
            time.sleep(0.01)
        return time.monotonic() - start

    def stop_calmly(self) -> None:
        """End the agent between two repairs, as systemd ends both."""
        assert self.agent is not None
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children")
        self.wait(lambda: not children.read_text())
        self.stop()

    def hears(self, words: str) -> None:
        """Wait until the agent has said ``words``, after what was heard before.

        What it does can be seen in the kernel before it has said so.
        """

        def is_said() -> bool:
            assert self.agent is not None and self.agent.stderr is not None
            os.set_blocking(self.agent.stderr.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                self._said += os.read(self.agent.stderr.fileno(), 1 << 16)
            return words.encode() in self._said

        self.wait(is_said)
        self._said = self._said.partition(words.encode())[2]

    def seen(self) -> str:
        return run("tc", "class", "show", "dev", "vffqos0") + run("nft", "list", "ruleset")

    def limits(self, wan: str = "wan0") -> list[int | None]:
        """Alice's ceil on IFB and WAN; None where the class or the device is missing."""
        tc, found = Tc(), []
        for device in ("vffqos0", wan):
            there = {name: index for index, name in socket.if_nameindex()}
            trees = 4 if "mq 51ff:" in run("tc", "qdisc", "show", "dev", device) else 1
            have = tc.classes(there[device], 0x5100, trees) if device in there else {}
            found.append(have[self.minor].params.ceil_bps if self.minor in have else None)
        tc.close()
        return found

    def is_whole(self, wan: str = "wan0") -> bool:
        """Everything is as it was."""
        tables = run("nft", "list", "tables")
        up = subprocess.run(["ip", "-br", "link", "show", "vffqos0"], capture_output=True).stdout
        return (
            "inet vff_qos" in tables
            and "ct mark" in run("nft", "list", "table", "inet", "vff_qos")
            and b"UP" in up
            and self.limits(wan) == [5_000_000, 10_000_000]
            and "clsact" in run("tc", "qdisc", "show", "dev", wan)
        )


def plan_without_filters(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel without our filters, have plans made without them, in child processes, too."""
    if missing_filters():
        (directory / "sitecustomize.py").write_text(PLANS_WITHOUT_FILTERS)
        monkeypatch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ['PYTHONPATH']}")
