"""The real sing-box as the proxy of a node, whose users the agent knows by what it tells."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from typing import Any

import yaml

from vff_qos.state import State

from .customers import CUSTOMERS, NODE, Connection
from .harness import Node, eventually, look, run, status
from .singbox_node import ENGINE_PORT, TARGET_PORT, HoppingSite

SOCKS_PORT, API_PORT, SECRET = 8443, 9091, "some-secret"


class EngineSite(HoppingSite):
    """A node with the engine's SOCKS inbound on one port, and Hysteria 2 on another."""

    def __init__(self, node: Node, **source: str) -> None:
        """``source``: where the agent learns whose connections are."""
        settings = node.directory / "settings.yml"
        found = yaml.safe_load(settings.read_text())
        del found["xray_access_log_path"]
        settings.write_text(yaml.safe_dump({**found, "sources": [source]}))
        super().__init__(node, service_ports=[SOCKS_PORT])
        self.secret = SECRET
        self.engine: subprocess.Popen[str] | None = None
        self.log = node.directory / "sing-box.log"

    def start_engine(self, users: dict[str, str], *rules: object, **log: object) -> None:
        """The engine, whose users are {name: password}."""
        directory = self.node.directory
        tls = {"enabled": True, "certificate_path": str(directory / "cert.pem"),
               "key_path": str(directory / "key.pem")}  # fmt: skip
        inbounds: list[object] = [
            {"type": "hysteria2", "tag": "hysteria", "listen": NODE[0], "tls": tls,
             "listen_port": ENGINE_PORT,
             "users": [{"name": n, "password": p} for n, p in users.items()]},
            {"type": "socks", "tag": "socks", "listen": "0.0.0.0", "listen_port": SOCKS_PORT,
             "users": [{"username": n, "password": p} for n, p in users.items()]},
        ]  # fmt: skip
        api = {"type": "api", "listen": "127.0.0.1", "listen_port": API_PORT,
               "secret": self.secret}  # fmt: skip
        self.engine = self._run(
            "server", inbounds, [{"type": "direct"}], [], services=[api], route={"rules": rules},
            log={"level": "info", "timestamp": True, "output": str(self.log), **log},
        )  # fmt: skip
        self.drain(self.engine)
        eventually(lambda: f"127.0.0.1:{API_PORT} " in run("ss", "-Hntl"), 20)
        eventually(lambda: f":{SOCKS_PORT} " in run("ss", "-Hntl"), 20)

    def stop_engine(self) -> None:
        assert self.engine is not None
        self.engine.send_signal(signal.SIGTERM)
        self.engine.wait(20)

    def socks(
        self, user: str, password: str, address: str = CUSTOMERS[0], name: bytes = b""
    ) -> Connection:
        """A connection through the engine, to the target or to what is called ``name``."""
        made = self.connect(address, ours=(NODE[0], SOCKS_PORT))
        sock = made.sock
        sock.settimeout(10)
        sock.sendall(b"\5\1\2")
        assert sock.recv(2) == b"\5\2"
        words = [user.encode(), password.encode()]
        sock.sendall(b"\1" + b"".join(bytes((len(word),)) + word for word in words))
        assert sock.recv(2) == b"\1\0"
        target = b"\3" + bytes((len(name),)) + name if name else b"\1\x7f\0\0\1"
        sock.sendall(b"\5\1\0" + target + TARGET_PORT.to_bytes(2, "big"))
        with contextlib.suppress(OSError):  # to a name there is no way
            sock.recv(10)
        return made

    def source(self) -> dict[str, Any]:
        """What ``status`` says of it."""
        (found,) = status(self.node)["follower"]["sources"]
        return dict(found)

    def said(self) -> str:
        """``status`` for people."""
        return look(self.node)[1]

    def datagram_holders(self) -> set[str]:
        """Whose the UDP flows to the engine are; "" among them for nobody's."""
        state = State(str(self.node.directory / "state"))
        keys = {owner.minor: owner.key for owner in state.owners()}
        state.close()
        return {keys.get(mark & 0xFFFF, "") for mark in self.flows().values()}


def is_open(sock: socket.socket) -> bool:
    """Whether what is sent comes back."""
    sock.sendall(b"x")
    return sock.recv(1) == b"x"
