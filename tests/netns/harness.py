"""What tests in network namespaces share: a node, its clients, and looks at the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from lab.snapshot import without_counts
from vff_qos.core.flow import Flow
from vff_qos.core.htb import user_class
from vff_qos.core.plan.desired import desired, our_table
from vff_qos.core.plan.objects import Filter
from vff_qos.core.settings import Settings, parse_settings
from vff_qos.errors import KernelRefused
from vff_qos.kernel import filters, nft, route
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
from vff_qos.kernel.packed.nft_elements import CutSet
from vff_qos.kernel.packed.tc import ClassKey, Tc, add_class

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

MAJOR = 0x5100
WAN = "wan0"
NODE, CLIENT, NODE6, CLIENT6 = "10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"
MARK = 0x5100002A
SETTINGS = Settings(
    wan=WAN, service_ports=((443, 443), (20000, 20100)), node_ceil_bps=10**9, leaf="pfifo"
)


def run(*command: str, stdin: str | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Client:
    """A live TCP flow over loopback."""

    def __init__(self, address: str, port: int) -> None:
        self.sock = socket.create_connection((address, port))
        self.address, self.port = self.sock.getsockname()[:2]
        family = self.sock.family
        packed = socket.inet_pton(family, self.address)
        self.flow = Flow(6, packed, self.port, socket.inet_pton(family, address), port)
        self.text = f"[{self.address}]" if family == socket.AF_INET6 else self.address

    def line(self, email: str, prefix: str = "") -> bytes:
        """The line that Xray writes for this flow."""
        now = time.time()
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now))
        return (
            f"{stamp}.{int(now % 1 * 1e6):06d} from {prefix}{self.text}:{self.port} accepted "
            f"tcp:example.com:443 [in >> direct] email: {email}\n"
        ).encode()


def cut_marks() -> set[int]:
    """Marks of the users who are cut off."""
    with contextlib.closing(CutSet()) as elements:
        return elements.marks()


class Node:
    """Files of a node, its agent, and servers for the clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "access.log"
        self.log.touch()
        self.listeners = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listener = socket.socket(family)
            listener.bind((address, 4430))
            listener.listen(4096)
            self.listeners.append(listener)
        (directory / "settings.yml").write_text(
            f"if_wan: wan0\nleaf: pfifo\nservice_ports: [4430]\nxray_access_log_path: {self.log}\n"
            "gc_idle_sec: 3600\ngc_min_age_sec: 0\ngc_pool_min: 0\ngc_pool_max: 4\n"
        )
        self.write_policy("users:\n  alice@x: {upload: 5mbit, download: 10mbit}\n")
        self.agent: subprocess.Popen[str] | None = None
        self.conntrack = Conntrack()

    def write_policy(self, text: str) -> None:
        """Replace the policy."""
        (self.directory / "policy.yml").write_text(
            "default: {upload: 2mbit, download: 3mbit}\n" + text
        )

    def command(self, *words: str) -> list[str]:
        """A vff-qos command with this node's files."""
        return [
            sys.executable,
            "-m",
            "vff_qos",
            *words,
            "--settings",
            str(self.directory / "settings.yml"),
            "--policy",
            str(self.directory / "policy.yml"),
            "--state-dir",
            str(self.directory / "state"),
            "--run-dir",
            str(self.directory / "run"),
        ]

    def make_table(self) -> None:
        """The nft table, as bootstrap makes it from the settings."""
        settings = parse_settings((self.directory / "settings.yml").read_bytes(), "settings.yml")
        nft.replace_table(our_table(settings))

    def start(self) -> None:
        """Start the agent and wait until it says that it follows."""
        self.agent = subprocess.Popen(self.command("follow"), stderr=subprocess.PIPE, text=True)
        assert self.agent.stderr is not None
        first = self.agent.stderr.readline()
        assert "follows" in first, first + self.agent.stderr.read()

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the agent."""
        if self.agent is not None:
            self.agent.send_signal(how)
            self.agent.communicate(timeout=10)
            self.agent = None

    def write(self, *lines: bytes) -> None:
        """Append to the log, as the engine does."""
        with self.log.open("ab") as file:
            file.write(b"".join(lines))

    def mark(self, client: Client) -> int | None:
        """The client's flow's mark in the kernel."""
        return self.conntrack.get_marks([prepare(client.flow)])[0]

    def classes(self) -> tuple[dict[int, int], dict[int, int]]:
        """{minor: ceil} on (IFB, WAN)."""
        tc = Tc()
        up, down = (
            {m: s.params.ceil_bps for m, s in tc.classes(socket.if_nametoindex(dev), MAJOR).items()}
            for dev in ("vffqos0", "wan0")
        )
        tc.close()
        return up, down

    def run(self, *words: str) -> str:
        """Output of a vff-qos command that must succeed."""
        return run(*self.command(*words))


def look(node: Node, *words: str) -> tuple[int, str]:
    """Exit code and output of ``status``, which is not 0 where there is something to tell."""
    done = subprocess.run(
        node.command("status", *words), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, done.stdout


def status(node: Node, *words: str) -> dict[str, Any]:
    """What ``status --json`` says."""
    found: dict[str, Any] = json.loads(look(node, "--json", *words)[1])
    return found


def eventually(check: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until ``check`` is true."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def is_found(node: Node, kind: str) -> bool:
    """Whether a finding of that kind is told; another one may make the same verdict before it."""
    return any(one["kind"] == kind for one in status(node)["findings"])


def user(node: Node, email: str) -> Client:
    """A live flow of a user who has a class."""
    client = Client("127.0.0.1", 4430)
    node.write(client.line(email))
    eventually(lambda: node.mark(client))
    return client


def ceils(node: Node, client: Client) -> tuple[int | None, int | None]:
    """(upload, download) limits of the class of a client's flow."""
    minor = (node.mark(client) or 0) & 0xFFFF
    up, down = node.classes()
    return up.get(minor), down.get(minor)


@contextlib.contextmanager
def small_disk(directory: Path, size: str = "512k") -> Iterator[None]:
    """A file system of its own."""
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))
    try:
        yield
    finally:
        run("umount", "-l", str(directory))


def fill(directory: Path) -> Path:
    """Take all room there is; returns the file that holds it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


class Memory:
    """A state without a file; what goes in must be JSON."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get_value(self, key: str) -> Any:
        return json.loads(self.values.get(key, "null"))

    def set_value(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


class Network:
    """The node is this namespace, a client another one, between them a veth pair."""

    def __init__(self) -> None:
        self.client = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        while self._same_namespace():
            time.sleep(0.01)
        run("ip", "link", "add", WAN, "type", "veth", "peer", "c0", "netns", str(self.client.pid))
        for address, peer, options in ((NODE, CLIENT, ()), (NODE6, CLIENT6, ("nodad",))):
            plen = "64" if ":" in address else "24"
            run("ip", "address", "add", f"{address}/{plen}", "dev", WAN, *options)
            self.on_client("ip", "address", "add", f"{peer}/{plen}", "dev", "c0", *options)
        run("ip", "link", "set", WAN, "up")
        self.on_client("ip", "link", "set", "c0", "up")
        while "LOWER_UP" not in run("ip", "link", "show", "dev", WAN):
            time.sleep(0.01)

    def close(self) -> None:
        """End the client's namespace."""
        self.client.kill()
        self.client.wait()

    def _same_namespace(self) -> bool:
        names = [run("readlink", f"/proc/{p}/ns/net") for p in ("self", self.client.pid)]
        return names[0] == names[1]

    def enter(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.client.pid), "-n", *command]

    def on_client(self, *command: str) -> str:
        return run(*self.enter(*command))


def missing_filters() -> str:
    """What this kernel cannot do for us, found by trying."""
    run("ip", "link", "add", "probe0", "type", "ifb")
    indices = {name: index for index, name in socket.if_nameindex()}
    missing = []
    with IPRoute() as ipr:
        route.put_tree(ipr, indices["probe0"], 0x5100, 1)
        try:
            route.add_clsact(ipr, indices["probe0"])
        except KernelRefused as error:
            missing.append(f"clsact ({error})")
        wanted = desired(replace(SETTINGS, ifb="probe0"), "probe0")
        wanted += desired(replace(SETTINGS, ifb="probe0", service_ports=()), "probe0")
        done = []
        for item in wanted:
            if isinstance(item, Filter) and item.key not in done:
                done.append(item.key)
                try:
                    filters.add_filter(ipr, item, 0x5100, indices)
                except KernelRefused:
                    actions = [type(action).__name__ for action in item.actions]
                    missing.append(" ".join([item.classifier, *actions]))
    run("ip", "link", "del", "probe0")
    return ", ".join(dict.fromkeys(missing))


#: In the place of the plan, in a kernel without our filters.
PLANS_WITHOUT_FILTERS = """
from vff_qos.core.plan import objects, plan
complete = plan.desired
plan.desired = lambda *a: [o for o in complete(*a) if not isinstance(o, objects.Filter)]
"""
WITHOUT_FILTERS = f"""
import sys
{PLANS_WITHOUT_FILTERS}
from vff_qos.cli import main
sys.exit(main(sys.argv[1:]))
"""


def vff_qos(
    directory: Path, *words: str, within: Sequence[str] = (), more: str = ""
) -> tuple[int, str]:
    """Exit code and all output of a command with files in ``directory``."""
    (directory / "settings.yml").write_text(f"if_wan: {WAN}\nleaf: pfifo\n{more}")
    (directory / "policy.yml").write_text("default: {}\n")
    options = [f"--{what}={directory}/{what}.yml" for what in ("settings", "policy")]
    options += [f"--{what}-dir={directory}" for what in ("state", "run")]
    done = subprocess.run(
        [*within, sys.executable, "-c", WITHOUT_FILTERS, *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def snapshot() -> dict[str, str]:
    """Everything that could be left behind; nothing that a packet or the carrier changes."""
    links = json.loads(run("ip", "-j", "-d", "link"))
    names = [link["ifname"] for link in links]
    return {
        # Neither the state, whose column is as wide as its word.
        "links": re.sub(
            r"(?m)^(\S+) +\S+ *(?= )|,LOWER_UP|NO-CARRIER,", r"\1", run("ip", "-br", "link")
        ),
        "addresses": run("ip", "-o", "address", "show", "scope", "global"),
        "qdiscs": "\n".join(shown_qdiscs()),
        "ingress": "".join(run("tc", "filter", "show", "dev", n, "ingress") for n in names),
        "egress": "".join(run("tc", "filter", "show", "dev", n, "egress") for n in names),
        "nft": run("nft", "list", "tables").replace("table inet track\n", ""),
    }


def shown_qdiscs(*of: str) -> list[str]:
    """Lines of ``tc qdisc show``, in an order of their own; ``of``: ``dev`` and a name."""
    return sorted(without_counts(run("tc", "qdisc", "show", *of)).splitlines())


def root_of(dev: str) -> str:
    found = json.loads(run("tc", "-j", "qdisc", "show", "dev", dev, "root"))
    return f"{found[0]['kind']} {found[0]['handle']}" if found else ""


def cgroup_mount() -> Path:
    """Where cgroup2 is mounted; skips the test if it is not."""
    mounts = Path("/proc/self/mounts").read_text()
    found = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.MULTILINE)
    if found is None:
        pytest.skip("needs cgroup2")
    return Path(found[1])


class Module:
    """As much of AnsibleModule as the functions of qos_preflight use."""

    def __init__(self, **params: object) -> None:
        self.params: dict[str, Any] = {
            "wan": "auto", "ifb": "vffqos0", "handle": "5100", "take_foreign_root": False, **params
        }  # fmt: skip

    def run_command(
        self, command: list[str], environ_update: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **(environ_update or {})}
        )
        return done.returncode, done.stdout, done.stderr


_ASK = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(20):
    sock.send(b"x" * 100)
    assert sock.recv(200)
"""


_ANSWER = """
import socket, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(200)
    sock.sendto(data, peer)
"""


def exchange(net: Network, address: str, port: int) -> None:
    """Twenty datagrams there and back on one flow."""
    server = subprocess.Popen(
        [sys.executable, "-c", _ANSWER, str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout and server.stdout.readline() == "ready\n"
    try:
        net.on_client(sys.executable, "-c", _ASK, address, str(port))
    finally:
        server.kill()
        server.wait()


def comparable(text: str) -> list[str]:
    """Without what a device that is made anew may have differently: its MAC, numbers of actions."""
    words = [w for w in text.split() if w.count(":") != 5]
    return [w for before, w in zip(["", *words], words, strict=False) if before != "index"]


def add_user(dev: str) -> None:
    """The class of a user with 50 Mbit/s."""
    classes = Tc()
    key = ClassKey(socket.if_nametoindex(dev), 0x5100, 0x2A)
    classes.apply(add_class(key, 1, user_class(50_000_000), "pfifo"))
    classes.close()


def listeners() -> int:
    """Sockets that hear of qdiscs and classes (RTNLGRP_TC), in this network namespace; the columns
    are those of the kernel's net/netlink/af_netlink.c."""
    rows = [row.split() for row in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    return sum(int(groups, 16) >> 3 & 1 for _socket, family, _port, groups, *_rest in rows
               if int(family) == socket.NETLINK_ROUTE)  # fmt: skip
