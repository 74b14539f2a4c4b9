"""The namespaces in which the node's customers and their targets live.

They have no names: a namespace lives as long as the process that holds it, and these processes die
with us (or with `down`), so that nothing is left behind however a run ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import counters, network
from .progress import LabError
from .users import Device

GUEST = Path(__file__).parent / "guest"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
ENGINE_TIMEOUT_S = 30.0
#: In the environment of our processes: what tells them from a stranger's with a reused pid.
MARK = "VFF_QOS_LAB"

Preexec = Callable[[], None] | None


class Internet:
    """The namespaces `inet` and `clients` and the clients' engine. `folder` keeps their pids."""

    def __init__(self, folder: Path, preexec: Preexec) -> None:
        """`preexec` runs in each child before exec: it ties the child's life to ours."""
        self._folder, self._preexec = folder, preexec
        self._pids: dict[str, int] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        if self._state.exists():
            self._pids = json.loads(self._state.read_text())

    @property
    def _state(self) -> Path:
        return self._folder / "internet.json"

    def up(self, queues: int = 1) -> list[int]:
        """Make the namespaces; returns descriptors of the node's WAN, a tap: one for each queue.

        Raises LabError where this machine does not allow it.
        """
        for name in ("inet", "clients"):
            self._start(name, ["unshare", "--net", "--", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        for name in ("inet", "clients"):
            while self._missing(name) or os.readlink(self.namespace(name)) == own:
                if time.monotonic() > deadline:
                    raise LabError("cannot make a network namespace: the lab needs root")
                time.sleep(0.01)
        return self._tap(queues)

    def namespace(self, name: str) -> str:
        """The path of a namespace, for setns(2) and nsenter."""
        return f"/proc/{self._pids[name]}/ns/net"

    def connect(self, devices: Sequence[Device]) -> None:
        """Build links, addresses and routes for `devices`."""
        self.run("inet", network.inet_script(devices, self._pids["clients"]))
        self.run("clients", network.clients_script(devices))

    def start_engine(self, config: Path) -> None:
        """Start the clients' engine and wait until it listens; LabError with its log if not."""
        log = self._folder / "client.log"
        address = self._folder / "ready.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(log, "wb") as output:
            ready.bind(str(address))
            ready.settimeout(ENGINE_TIMEOUT_S)
            command = [sys.executable, str(GUEST / "engine.py"), str(config)]
            self._start(
                "engine",
                ["nsenter", f"--net={self.namespace('clients')}", "--", *command],
                environment={"NOTIFY_SOCKET": str(address)},
                output=output.fileno(),
            )
            try:
                # Behind READY=1; the helper that says it waits until we have read this.
                while ready.recv(64) != b"BARRIER=1":
                    pass
            except TimeoutError as error:
                tail = " | ".join(log.read_text().strip().splitlines()[-4:])
                raise LabError(f"the clients' engine did not start: {tail}") from error
            finally:
                address.unlink()

    def run(self, name: str, script: str) -> str:
        """Run a shell script in a namespace; returns its output, LabError if it fails."""
        done = subprocess.run(
            ["nsenter", f"--net={self.namespace(name)}", "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            tail = " | ".join(done.stderr.strip().splitlines()[-4:])
            raise LabError(f"in the namespace {name}, {shlex.quote(script[:60])}: {tail}")
        return done.stdout

    def down(self) -> None:
        """End our processes; with them go the namespaces and all devices in them."""
        for name in list(self._pids):
            if not self._missing(name):
                os.kill(self._pids[name], signal.SIGKILL)
        for child in self._children:
            child.wait()
        self._pids, self._children = {}, []
        self._state.unlink(missing_ok=True)

    def _missing(self, name: str) -> bool:
        """Is the process gone? (One with its pid that is not ours does not count.)"""
        try:
            environment = Path(f"/proc/{self._pids[name]}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return f"{MARK}={self._folder}".encode() not in environment.split(b"\0")

    def _start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str] | None = None,
        output: int = subprocess.DEVNULL,
    ) -> None:
        child = subprocess.Popen(
            command,
            env={**os.environ, MARK: str(self._folder), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=self._preexec,
        )
        self._children.append(child)
        self._pids[name] = child.pid
        self._state.write_text(json.dumps(self._pids))

    def _tap(self, queues: int) -> list[int]:
        """A tap device in `inet`; it lives as long as its descriptors, which the node inherits.

        With virtio headers, so that large segments pass in one piece as on real hardware.
        """
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
        request = struct.pack("16sH22x", network.TAP.encode(), flags)
        descriptors: list[int] = []
        with counters.inside(self.namespace("inet")):
            try:
                for _queue in range(queues):
                    descriptors.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
                    fcntl.ioctl(descriptors[-1], TUNSETIFF, request)
            except OSError as error:
                raise LabError(f"cannot make a tap device: {error}") from error
        return descriptors
