"""The whole lab: a node, its Internet, the engines and the users."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from . import engine, network, singbox
from .measure import Report, Run
from .node import RUNTIME, Node
from .progress import LabError, step
from .users import SING_BOX_SECRET, SING_BOX_SECRET_FILE, USERS, Device, Direction, User, devices

GUEST = Path(__file__).parent / "guest"
#: Counts live TCP connections that bear a mark of ours, whichever tree it names.
_MARKED = (
    "for family in ipv4 ipv6; do conntrack -L -f $family -m 0x51000000/0xff000000; done 2>/dev/null"
    " | grep -c ESTAB"
)
_MARKED_S = 60


class Lab:
    """A node with clients. Use as a context manager, or `up` and `down`, or `attach`.

    with Lab() as lab:
        lab.start_engine()
        report = lab.measure("download", seconds=15)
    """

    def __init__(
        self,
        name: str = "node",
        *,
        suite: str = "bookworm",
        persistent: bool = False,
        runtime: Path = RUNTIME,
        node: Node | None = None,
    ) -> None:
        self.node = node or Node(name, suite=suite, persistent=persistent, runtime=runtime)
        self.users: tuple[User, ...] = ()
        self.devices: list[Device] = []

    @classmethod
    def attach(cls, name: str = "node", users: Sequence[User] = USERS) -> Lab:
        """The lab of a running persistent node whose engine was started for `users`."""
        lab = cls(node=Node.attach(name))
        lab._adopt(users)
        return lab

    def __enter__(self) -> Lab:
        self.node.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.node.__exit__(kind, error, trace)

    def start_engine(self, users: Sequence[User] = USERS) -> None:
        """Connect the users' devices, start server and clients, wait until they listen.

        On the node it is enabled as systemd units, so it comes back after a reboot. Once per node.
        """
        self._adopt(users)
        with step(f"starting the engines for {len(self.users)} users"):
            internet = self.node.internet
            internet.connect(self.devices)
            with tempfile.TemporaryDirectory() as folder:
                tree = Path(folder)
                self._write_files(tree)
                self.node.put(tree, "/")
            self.node.put(GUEST, "/opt/lab")
            self.node.ssh("useradd --system --no-create-home xray && chown -R xray: /etc/xray")
            started = self.node.run("systemctl enable --quiet --now lab-net xray", check=False)
            if started.returncode:
                logs = self.node.ssh("journalctl -b -p warning -n 6 -o cat --no-pager")
                raise LabError("the engine did not start: " + " | ".join(logs.splitlines()))
            if self._of_singbox:
                self._start_singbox()
            internet.start_engine(self._client_config)

    def start_traffic(
        self,
        direction: Direction,
        seconds: float = 15.0,
        *,
        users: Sequence[User] | None = None,
        interval_s: float = 0.5,
        idle_s: float = 3.0,
        warmup_s: float = 6.0,
        line: float | None = None,
    ) -> Run:
        """Load the node for all users (or some) at once, in the background.

        `users` may be variants of those that the engine knows, with other sources or flows.
        `line` is the speed of their access lines in multiples of their download limits.
        Measured are the `seconds` that follow `idle_s` (round trips without load) and `warmup_s`.
        """
        chosen = {user.email: user for user in (self.users if users is None else users)}
        some = [
            replace(device, user=chosen[device.user.email])
            for device in self.devices
            if device.user.email in chosen
        ]
        self.node.internet.run("inet", network.lines_script(some, line))
        return Run(
            self.node.internet,
            self.node.dir / "traffic",
            some,
            direction,
            seconds,
            interval_s=interval_s,
            idle_s=idle_s,
            warmup_s=warmup_s,
        )

    def measure(
        self,
        direction: Direction,
        seconds: float = 15.0,
        *,
        users: Sequence[User] | None = None,
        interval_s: float = 0.5,
        idle_s: float = 3.0,
        warmup_s: float = 6.0,
    ) -> Report:
        """As `start_traffic`, but wait for the result."""
        count = len(self.users if users is None else users)
        with step(f"measuring {direction} of {count} users for {seconds:.0f} s"):
            return self.start_traffic(
                direction,
                seconds,
                users=users,
                interval_s=interval_s,
                idle_s=idle_s,
                warmup_s=warmup_s,
            ).result()

    def await_marks(self, connections: int) -> None:
        """Wait until so many live TCP connections are their users'."""
        until = shlex.quote(f"until [ $({_MARKED}) -ge {connections} ]; do sleep 0.5; done")
        self.node.ssh(f"timeout {_MARKED_S} sh -c {until}")

    @property
    def _of_singbox(self) -> list[User]:
        return [user for user in self.users if user.engine == "sing-box"]

    def _start_singbox(self) -> None:
        program = singbox.binary()
        if program is None:
            raise LabError("there is no sing-box for this machine; make setup installs it")
        self.node.put(program, singbox.BINARY)
        self.node.ssh(f"chmod 600 {SING_BOX_SECRET_FILE}; chmod 755 {singbox.BINARY}")
        self.node.ssh("systemctl enable --quiet --now sing-box")
        ports = {user.server_port for user in self._of_singbox}
        there = " && ".join(f"ss -Hntl sport = :{port} | grep -q ." for port in sorted(ports))
        self.node.ssh(f"timeout 60 sh -c 'until {there}; do sleep 0.5; done'")

    def _adopt(self, users: Sequence[User]) -> None:
        self.users = tuple(users)
        self.devices = devices(self.users)

    @property
    def _client_config(self) -> Path:
        return self.node.dir / "client.json"

    def _write_files(self, tree: Path) -> None:
        """The clients' config here, and everything under /etc that the lab adds to the node."""
        for folder in ("etc/xray", "etc/lab", "etc/sing-box", "etc/systemd/system"):
            (tree / folder).mkdir(parents=True)
        fingerprint = engine.certificate(tree / "etc/xray")
        self._client_config.write_text(json.dumps(engine.client(self.devices, fingerprint)))
        files = {
            "etc/xray/config.json": json.dumps(engine.server(self.users), indent=1),
            "etc/lab/wan": network.node_batch(),
            "etc/systemd/system/lab-net.service": network.NODE_UNIT,
            "etc/systemd/system/xray.service": engine.SERVER_UNIT,
        }
        if self._of_singbox:
            files["etc/sing-box/config.json"] = singbox.config(self._of_singbox)
            files["etc/systemd/system/sing-box.service"] = singbox.UNIT
            files[SING_BOX_SECRET_FILE.lstrip("/")] = SING_BOX_SECRET
        for path, text in files.items():
            (tree / path).write_text(text)
