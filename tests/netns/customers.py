"""Customers in a namespace of their own, who reach the node over a wire as from the internet."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import prepare
from vff_qos.state import State

from .harness import CLONE_NEWNET, LIBC, Node, eventually, run

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
#: Ours, and those of who connects.
NODE = [f"10.98.0.{number}" for number in (1, 2, 3)]
CUSTOMERS = [f"10.98.0.{number}" for number in range(11, 20)]
STRANGER = "10.98.0.66"
_RESET = struct.pack("ii", 1, 0)


def stamp(ago_s: float = 0.0) -> str:
    """As the engine writes it."""
    at_s = time.time() - ago_s
    whole = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(at_s))
    return f"{whole}.{int(at_s % 1 * 1e6):06d}"


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Connection:
    """A flow of a customer, and what the engine says of it."""

    def __init__(self, sock: socket.socket, proto: int, ours: tuple[str, int]) -> None:
        self.sock = sock
        self.source = sock.getsockname()[:2]
        self.flow = Flow(
            proto, packed(self.source[0]), self.source[1], packed(ours[0]), ours[1],
        )  # fmt: skip

    def line(self, email: str, tag: str = "in", ago_s: float = 0.0) -> bytes:
        """The line that gives the flow to a user."""
        address, port = self.source
        address = f"[{address}]" if ":" in address else address
        return (
            f"{stamp(ago_s)} from {address}:{port} accepted tcp:example.com:443 "
            f"[{tag} >> direct] email: {email}\n"
        ).encode()

    def reset(self) -> None:
        """End it so that the same ends may be used again at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


def is_reset(connection: Connection) -> bool:
    """Whether it was ended: the peer may not have sent anything."""
    connection.sock.setblocking(False)
    try:
        return connection.sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def lives(connection: Connection) -> bool:
    """Whether what is sent reaches the node, which acknowledges it."""
    connection.sock.send(b"alive")
    eventually(lambda: is_reset(connection) or not unacknowledged(connection))
    return not is_reset(connection)


def unacknowledged(connection: Connection) -> int:
    """Bytes that have been sent and not acknowledged (SIOCOUTQ of tcp(7))."""
    found = fcntl.ioctl(connection.sock, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(found, sys.byteorder)


class Site:
    """A node, its services on several addresses and ports, and the customers."""

    def __init__(self, node: Node, ports: tuple[int, ...] = (443, 8443)) -> None:
        self.node = node
        self._process = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        there, own = f"/proc/{self._process.pid}/ns/net", os.readlink("/proc/self/ns/net")
        eventually(lambda: os.readlink(there) != own)
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._there = os.open(there, os.O_RDONLY | os.O_CLOEXEC)
        run("ip", "link", "set", "wan1", "netns", str(self._process.pid))
        for address in NODE:
            run("ip", "address", "add", f"{address}/24", "dev", "wan0")
        with self._entered():
            run("ip", "link", "set", "wan1", "up")
            for address in (*CUSTOMERS, STRANGER):
                run("ip", "address", "add", f"{address}/24", "dev", "wan1")
        self._sockets: list[socket.socket] = []
        #: By port, of TCP and UDP.
        self.listeners: list[socket.socket] = []
        self.answerers: list[socket.socket] = []
        for port in ports:
            listener = socket.socket()
            listener.bind(("0.0.0.0", port))
            listener.listen(4096)
            answerer = socket.socket(type=socket.SOCK_DGRAM)
            answerer.bind(("0.0.0.0", port))
            self.listeners.append(listener)
            self.answerers.append(answerer)
        self.set(service_ports=list(ports))

    def set(self, **more: object) -> None:
        """Change the node's settings."""
        file = self.node.directory / "settings.yml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **more}))

    def told(self) -> None:
        """Whose a flow is, programs post to the socket ``flows``, and nobody else says it."""
        file = self.node.directory / "settings.yml"
        known = yaml.safe_load(file.read_text())
        del known["xray_access_log_path"]
        file.write_text(yaml.safe_dump(known))
        listen = f"unix:{self.node.directory / 'flows'}"
        self.set(sources=[{"type": "flows", "listen": listen}], same_names=True)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        assert LIBC.setns(self._there, CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert LIBC.setns(self._home, CLONE_NEWNET) == 0

    def join_ipv6(self, ours: str, *theirs: str, port: int = 443) -> None:
        """Give the node an IPv6 address, and the customers some."""
        run("ip", "address", "add", f"{ours}/32", "dev", "wan0", "nodad")
        with self._entered():
            for address in theirs:
                run("ip", "address", "add", f"{address}/32", "dev", "wan1", "nodad")
        listener = socket.create_server((ours, port), family=socket.AF_INET6)
        self._sockets.append(listener)

    def connect(
        self,
        address: str = CUSTOMERS[0],
        port: int = 0,
        ours: tuple[str, int] = (NODE[0], 443),
        proto: int = TCP,
        first: bytes = b"hello",
    ) -> Connection:
        """A connection, or a first datagram (``first``), from ``address``."""
        with self._entered():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.connect(ours)
        if proto == UDP:
            sock.send(first)
        return Connection(sock, proto, ours)

    def mark(self, connection: Connection) -> int:
        """The flow's mark in the kernel."""
        return self.node.conntrack.get_marks([prepare(connection.flow)])[0] or 0

    def knows(self, connection: Connection) -> bool:
        """Whether the kernel has the flow."""
        return self.node.conntrack.get_marks([prepare(connection.flow)])[0] is not None

    def holders(self, *connections: Connection) -> list[str]:
        """Whose class each flow is in: a key of the state, empty for nobody's."""
        state = State(str(self.node.directory / "state"))
        minors = {owner.minor: owner.key for owner in state.owners()}
        state.close()
        return [minors.get(self.mark(connection) & 0xFFFF, "") for connection in connections]

    def limits(self, connection: Connection) -> tuple[int, int]:
        """Upload and download of the class that a flow is in; bit/s."""
        minor = self.mark(connection) & 0xFFFF
        up, down = self.node.classes()
        return up[minor], down[minor]

    def status(self) -> dict[str, object]:
        """The agent's own counters."""
        path = Path(self.node.directory / "run/follow.json")
        found: dict[str, object] = json.loads(path.read_text())
        return found

    def close(self) -> None:
        """End it."""
        for sock in (*self._sockets, *self.listeners, *self.answerers):
            sock.close()
        self._process.kill()
        self._process.wait()
        os.close(self._home)
        os.close(self._there)
