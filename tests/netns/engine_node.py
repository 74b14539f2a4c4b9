"""The real engine as the proxy of a node, its customers, and what they may do to its log."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import yaml

from checkout import ROOT
from lab import engine, network
from lab.counters import inside
from lab.users import MBIT, PORTS, VLESS_RANGE, Device, User, role_variables
from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import decode_tuple

from .harness import Node, cgroup_mount, eventually, run

RUN_ENGINE = ROOT / "tests/lab/guest/engine.py"
#: The attackers' own; claims of a user vouch for what comes from the same address.
ATTACKER_IPV4 = "203.0.113.66"
SOCKS_PORT = 1080  # and the device's number
#: From a connection that carries data to its mark.
WITHIN_S = 1.0

USERS = (
    User("alice@lab", "vless", 50 * MBIT, 25 * MBIT),
    User("bob@lab", "vmess", 5 * MBIT, 10 * MBIT),
    User("carol@lab", "trojan", 8 * MBIT, 4 * MBIT),
    User("dave@lab", "shadowsocks", 4 * MBIT, 2 * MBIT),
    User("erin@lab", "shadowsocks", 3 * MBIT, 2 * MBIT, udp=True),
    User("frank@lab", "vless", 20 * MBIT, 3 * MBIT, ipv6=True),
    User("grace@lab", "shadowsocks", 6 * MBIT, 5 * MBIT, ipv6=True, udp=True),
    User("heidi@lab", "trojan", 9 * MBIT, 5 * MBIT, ipv6=True),
    User("ivan@lab", "vless", 11 * MBIT, 6 * MBIT, port=20040),
    User("judy@lab", "vless", 12 * MBIT, 7 * MBIT, port=20049),
)
RACER = User("oscar@lab", "vless", 2 * MBIT, 1 * MBIT, port=20040)
FORGERS = (
    User("mallory@lab", "trojan", 2 * MBIT, 1 * MBIT),
    User("trudy@lab", "shadowsocks", 2 * MBIT, 1 * MBIT),
)

#: journald's own world: nothing of this machine's journal, and nothing into it.
JOURNALD = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journald.conf.d /run/systemd/journal
cd /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\n' >own.conf
exec /lib/systemd/systemd-journald
"""


class Echo(socketserver.BaseRequestHandler):
    """Gives back what it gets."""

    def handle(self) -> None:
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(data, self.client_address)
            return
        while data := self.request.recv(4096):
            self.request.sendall(data)


class EngineNode(Node):
    """A node with the engine and an echo server behind it, and the customers' namespace."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.customers = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        self.namespace = f"/proc/{self.customers.pid}/ns/net"
        self.engines: list[subprocess.Popen[bytes]] = []
        self.journald: subprocess.Popen[bytes] | None = None
        # Of the engine's unit, and what brings a command to where its journal is.
        self.cgroup: Path | None = None
        self.within: list[str] = []
        self.echoes: list[socketserver.BaseServer] = []
        self.sockets: list[socket.socket] = []
        self.fingerprint = engine.certificate(directory)
        policy = role_variables((*USERS, RACER, *FORGERS))["qos_users"]
        self.write_policy(yaml.safe_dump({"users": policy}))
        self.configure("file")

    def configure(self, source: str, **more: object) -> None:
        """Settings with another source."""
        low, high = VLESS_RANGE
        settings = {"if_wan": "wan0", "leaf": "pfifo", "xray_access_log_path": str(self.log),
                    "identity_source": source,
                    "service_ports": [*PORTS.values(), f"{low}-{high}"], **more}  # fmt: skip
        (self.directory / "settings.yml").write_text(json.dumps(settings))

    def link(self) -> None:
        """Give both sides their addresses, the node the target."""
        own = os.readlink("/proc/self/ns/net")
        eventually(lambda: os.readlink(self.namespace) != own)
        run("ip", "link", "set", "wan1", "netns", str(self.customers.pid))
        self._addresses("wan0", network.NODE_IPV4, network.NODE_IPV6)
        self._addresses("lo", network.TARGET_IPV4)
        with inside(self.namespace):
            self._addresses("lo")
            self._addresses("wan1", network.INET_IPV4, ATTACKER_IPV4, network.INET_IPV6)
        address = (network.TARGET_IPV4, engine.ECHO_PORT)
        for server in (socketserver.ThreadingTCPServer, socketserver.ThreadingUDPServer):
            server.daemon_threads = True
            self.echoes.append(server(address, Echo))
            threading.Thread(target=self.echoes[-1].serve_forever, args=(0.05,)).start()

    @staticmethod
    def _addresses(device: str, *addresses: str) -> None:
        run("ip", "link", "set", device, "up")
        for address in addresses:
            no_wait = ("nodad",) if ":" in address else ()
            net = "/64" if ":" in address else "/24"
            run("ip", "address", "add", address + net, "dev", device, *no_wait)

    def start_journald(self) -> str:
        """Start a journal of our own; returns the unit in which the node's engine will run.

        journald takes the unit's name from the writer's cgroup.
        """
        unit = f"xray-{os.urandom(8).hex()}.service"
        self.cgroup = cgroup_mount() / unit
        self.cgroup.mkdir()
        self.journald = subprocess.Popen(["unshare", "--mount", "sh", "-euc", JOURNALD])
        process = Path(f"/proc/{self.journald.pid}")
        eventually(lambda: (process / "comm").read_text().startswith("systemd-journal"))
        eventually((process / "root/run/systemd/journal/stdout").exists)
        self.within = ["nsenter", f"--mount={process}/ns/mnt"]
        return unit

    def command(self, *words: str) -> list[str]:
        return [*self.within, *super().command(*words)]

    def serve(self, config: engine.Config) -> None:
        """Start the node's engine; its files are in our directory."""
        text = json.dumps(config).replace("/var/log/xray", str(self.directory))
        start = self.within
        if self.cgroup is not None:
            join = f'echo $$ >{self.cgroup}/cgroup.procs; exec systemd-cat "$@"'
            start = [*start, "sh", "-euc", join, "sh"]
        self._start_engine("server", text.replace("/etc/xray", str(self.directory)), start)

    def connect(self, config: engine.Config) -> None:
        """Start the customers' engine: one for all."""
        for outbound in config["outbounds"]:
            del outbound["streamSettings"]["sockopt"]
        with inside(self.namespace):
            self._start_engine("client", json.dumps(config))

    def _start_engine(self, name: str, config: str, start: Sequence[str] = ()) -> None:
        file, ready = self.directory / f"{name}.json", self.directory / f"{name}.sock"
        file.write_text(config)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(ready))
            notify.settimeout(30)
            process = subprocess.Popen(
                [*start, sys.executable, str(RUN_ENGINE), str(file)],
                env={**os.environ, "NOTIFY_SOCKET": str(ready)},
            )
            self.engines.append(process)
            assert notify.recv(64) == b"READY=1"
            assert notify.recv(64) == b"BARRIER=1"

    def talk(self, device: Device) -> None:
        """Open a connection through the device's tunnel, and keep it."""
        kind = socket.SOCK_DGRAM if device.user.udp else socket.SOCK_STREAM
        with inside(self.namespace):
            sock = socket.socket(type=kind)
        self.sockets.append(sock)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", device.echo_port))
        sock.sendall(b"hello")
        assert sock.recv(64) == b"hello"

    def ask_for(self, device: Device, name: bytes) -> None:
        """Ask for a connection to ``name`` through a tunnel; the engine logs that it refuses."""
        with inside(self.namespace):
            sock = socket.create_connection(("127.0.0.1", SOCKS_PORT + device.number))
        with sock:
            sock.sendall(b"\x04\x01\x00\x50" + bytes([0, 0, 0, 1]) + b"\0" + name + b"\0")
            sock.settimeout(10)
            assert sock.recv(8)
            sock.sendall(bytes(1 << 16))  # Shadowsocks reads on for a while before it refuses
            eventually(lambda: name + b"\n" in self.log.read_bytes())

    def open_silent(self, address: str, port: int) -> tuple[Flow, socket.socket]:
        """A connection from ``address`` to an inbound that does not say whose it is."""
        ends = [socket.inet_aton(text) for text in (address, network.NODE_IPV4)]
        with inside(self.namespace):
            sock = socket.create_connection((network.NODE_IPV4, port), source_address=(address, 0))
        self.sockets.append(sock)
        return Flow(socket.IPPROTO_TCP, ends[0], sock.getsockname()[1], ends[1], port), sock

    def flows(self) -> dict[Flow, int]:
        """All flows of the node with their marks."""
        found = {decode_tuple(e.tuple_raw): e.mark for e in self.conntrack.dump()}
        return {flow: mark for flow, mark in found.items() if flow is not None}

    def mark_of(self, flow: Flow) -> int:
        """A live flow's mark, 0 for none."""
        return self.flows()[flow]

    def is_marked(self, user: User) -> bool:
        """Whether all flows of a user have a mark."""
        return 0 not in self.marks(user)

    def is_slower(self, flow: Flow, user: User) -> bool:
        """Whether a marked flow's class is no faster than ``user`` may be."""
        minor = self.flows()[flow] & 0xFFFF
        up, down = self.classes()
        assert user.upload and user.download
        return up[minor] <= user.upload and down[minor] <= user.download

    def marks(self, user: User) -> set[int]:
        """The marks of a user's flows."""
        proto = socket.IPPROTO_UDP if user.udp else socket.IPPROTO_TCP
        end = network.NODE_IPV6 if user.ipv6 else network.NODE_IPV4
        packed = socket.inet_pton(socket.AF_INET6 if user.ipv6 else socket.AF_INET, end)
        ours = (proto, packed, user.server_port)
        return {m for f, m in self.flows().items() if (f.proto, f.dst, f.dport) == ours}

    def close(self) -> None:
        """End everything."""
        self.stop()
        for sock in self.sockets:
            sock.close()
        for process in (*self.engines, self.customers):
            process.terminate()
            process.wait()
        if self.journald is not None:
            self.journald.terminate()
            self.journald.wait()
        if self.cgroup is not None:
            self.cgroup.rmdir()
        for server in self.echoes:
            server.shutdown()
            server.server_close()


def forged_name(flow: Flow, email: str) -> bytes:
    """A name that ends the line in which the engine refuses it, and makes another one."""
    address = socket.inet_ntop(socket.AF_INET, flow.src)
    return (
        f"a\n{time.strftime('%Y/%m/%d %H:%M:%S')}.000001 from {address}:{flow.sport} accepted "
        f"tcp:example.com:443 [vless-in >> direct] email: {email}"
    ).encode()


def vless_request(user: User) -> bytes:
    """A whole request for the echo server."""
    port = engine.ECHO_PORT.to_bytes(2, "big")
    target = b"\1" + port + b"\1" + socket.inet_aton(network.TARGET_IPV4)
    return b"\0" + uuid.UUID(user.id).bytes + b"\0" + target + b"hello"
