"""The real Hysteria 2 as the proxy of a node, its customers, and the hooks that it asks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from checkout import ROOT
from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import decode_tuple
from vff_qos.state import State

from .customers import NODE, UDP, Site
from .harness import Node, eventually, run
from .tunnel import Echo, certificate

HYSTERIA = ROOT / "tests/lab/guest/hysteria.py"
TOKEN = "0123456789abcdef"
HOOKS_PORT, STATS_PORT, TARGET_PORT, ENGINE_PORT = 8014, 9999, 7000, 20_000
STATS_SECRET = "stats-secret"
ENGINE_PORTS = range(20_000, 20_101)


class Hooks:
    """``vff-qos hooks`` of a node."""

    def __init__(self, node: Node, **settings: object) -> None:
        self.node, self.directory = node, node.directory
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self.users = node.directory / "users.yml"
        self.settings: dict[str, object] = {
            "listen": f"127.0.0.1:{HOOKS_PORT}", "token": TOKEN,
            "flows": f"unix:{node.directory / 'flows'}", "users_file": str(self.users), **settings,
        }  # fmt: skip
        (self.directory / "hooks-state").mkdir()

    def write_users(self, secrets: dict[str, str], mode: int = 0o600) -> None:
        """As a panel does: a new file in the place of the old one."""
        fresh = self.users.with_name(".users")
        fresh.write_text(yaml.safe_dump(secrets))
        fresh.chmod(mode)
        fresh.rename(self.users)

    def start(self) -> None:
        """Until they answer."""
        (self.directory / "hooks.yml").write_text(yaml.safe_dump(self.settings))
        self.process = subprocess.Popen(
            self.node.command("hooks"), stderr=subprocess.PIPE, text=True,
            env={**os.environ, "STATE_DIRECTORY": str(self.directory / "hooks-state")},
        )  # fmt: skip
        process = self.process

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self.said.append(line.rstrip("\n"))

        threading.Thread(target=listen, daemon=True).start()
        eventually(lambda: any("hooks are answered" in line for line in self.said), 20)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(10)
            self.process = None
            self.said.clear()

    def ask(
        self, method: str, path: str, body: bytes | None = None, token: str = TOKEN
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        client = http.client.HTTPConnection("127.0.0.1", HOOKS_PORT, timeout=15)
        client.request(method, f"/{token}{path}", body)
        answer = client.getresponse()
        headers = {name.lower(): value for name, value in answer.headers.items()}
        found = answer.status, headers, answer.read()
        client.close()
        return found

    def login(self, auth: str, addr: str = "10.98.0.11:5555") -> tuple[int, dict[str, Any]]:
        """As Hysteria asks."""
        body = json.dumps({"addr": addr, "auth": auth, "tx": 0}).encode()
        status, _, text = self.ask("POST", "/hysteria", body)
        return status, json.loads(text)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/status")[2])
        return found

    def has_said(self, words: str) -> bool:
        return any(words in line for line in self.said)


class Panel:
    """A panel's auth URL; ``users`` are {what a client sends: who that is}."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.hangs = False
        self.breaks = 0
        self.asked = 0
        panel = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if panel.is_gone(self):
                    return
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = panel.users.get(asked["auth"])
                self.say(200, json.dumps({"ok": name is not None, "id": name or ""}).encode())

            def do_GET(self) -> None:
                if panel.is_gone(self):
                    return
                ok = "user=carol&pass=right" in self.path
                self.say(204 if ok else 403, b"", {"userconns": "7"} if ok else {})

            def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                if panel.hangs:
                    time.sleep(5)
                self.send_response(panel.breaks or status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None
        self.port = 8090
        self.start()

    def is_gone(self, connection: BaseHTTPRequestHandler) -> bool:
        """Whether nothing is answered any more, on open connections either."""
        connection.close_connection = self._server is None
        self.asked += not connection.close_connection
        return connection.close_connection

    def start(self) -> None:
        ThreadingHTTPServer.allow_reuse_address = True
        ThreadingHTTPServer.daemon_threads = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class Engine:
    """A Hysteria server or client: a process, with what it says."""

    def __init__(self, kind: str, directory: Path, config: object, before: list[str]) -> None:
        place = directory / f"{kind}-{time.monotonic_ns()}"
        place.mkdir()
        (place / kind).symlink_to(HYSTERIA)
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [*before, sys.executable, kind, "-c", "config.yaml"], cwd=place, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "HYSTERIA_DISABLE_UPDATE_CHECK": "1",
                 "HYSTERIA_LOG_LEVEL": "debug"},
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def has_said(self, words: str) -> bool:
        return any(words in line for line in self.said)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class HysteriaSite(Site):
    """A node with Hysteria, whose customers come from one address."""

    def __init__(self, node: Node, **hooks: object) -> None:
        super().__init__(node, ports=(443,))
        directory = node.directory
        self.told()
        self.set(service_ports=[443, "20000-20100"])
        node.make_table()
        node.start()
        self.hooks = Hooks(node, **hooks)
        certificate(directory)
        self.engines: list[Engine] = []
        self.target = Echo(TARGET_PORT)
        self._ports = iter(range(5_001, 5_100))
        run(*self._enter("ip", "link", "set", "lo", "up"))

    def _enter(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self._process.pid), "-n", *words]

    def serve(self, **more: object) -> Engine:
        """Hysteria on this node."""
        directory = self.node.directory
        config = {
            "listen": f":{ENGINE_PORT}",
            "tls": {"cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")},
            "auth": {
                "type": "http",
                "http": {"url": f"http://127.0.0.1:{HOOKS_PORT}/{TOKEN}/hysteria"},
            },
            "trafficStats": {"listen": f"127.0.0.1:{STATS_PORT}", "secret": STATS_SECRET},
            "ignoreClientBandwidth": True,
            **more,
        }
        engine = Engine("server", directory, config, [])
        self.engines.append(engine)
        eventually(lambda: engine.has_said("server up and running"), 20)
        return engine

    def customer(self, auth: str, ports: str = str(ENGINE_PORT), **more: object) -> Customer:
        """A client of Hysteria, behind the same address as all others."""
        port = next(self._ports)
        config = {
            "server": f"{NODE[0]}:{ports}", "auth": auth, "tls": {"insecure": True}, "lazy": False,
            "tcpForwarding": [{"listen": f"127.0.0.1:{port}",
                               "remote": f"127.0.0.1:{TARGET_PORT}"}],
            **more,
        }  # fmt: skip
        engine = Engine("client", self.node.directory, config, self._enter())
        self.engines.append(engine)
        return Customer(self, engine, port)

    def udp_flows(self) -> dict[Flow, int]:
        """Marks of all UDP flows to the engine's ports."""
        found = {}
        for entry in self.node.conntrack.dump(0, 0):
            flow = decode_tuple(entry.tuple_raw)
            if flow is not None and flow.proto == UDP and flow.dport in ENGINE_PORTS:
                found[flow] = entry.mark
        return found

    def users_of(self) -> list[str]:
        """Whose the live UDP flows are, sorted; empty for nobody's."""
        state = State(str(self.node.directory / "state"))
        minors = {owner.minor: owner.key for owner in state.owners()}
        state.close()
        return sorted(minors.get(mark & 0xFFFF, "") for mark in self.udp_flows().values())

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()
        self.target.close()
        self.hooks.stop()
        self.node.stop()
        super().close()


class Customer:
    """A client, and what its program may do through it."""

    def __init__(self, site: HysteriaSite, engine: Engine, port: int) -> None:
        self._site, self.engine, self._port = site, engine, port

    @property
    def is_in(self) -> bool:
        return self.engine.has_said("connected to server")

    @property
    def is_refused(self) -> bool:
        return self.engine.has_said("authentication error")

    def keep_busy(self, moved: list[int]) -> None:
        """Bytes go and come back at once until the tunnel ends; ``moved`` gets how many came."""
        with self._site._entered():
            sock = socket.socket()

        def send() -> None:
            with suppress(OSError):
                while True:
                    sock.sendall(bytes(65_536))

        with sock, ThreadPoolExecutor(1) as pool:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", self._port))
            sending = pool.submit(send)
            with suppress(OSError):
                while came := len(sock.recv(65_536)):
                    moved.append(came)
            sending.result()

    def echo(self, size: int = 100, within_s: float = 15.0) -> bool:
        """Whether bytes come back through the tunnel."""
        with self._site._entered():
            sock = socket.socket()
        with sock:
            sock.settimeout(within_s)
            try:
                sock.connect(("127.0.0.1", self._port))
                sock.sendall(bytes(size))
                got = 0
                while got < size:
                    got += len(sock.recv(65_536)) or size + 1
            except OSError:
                return False
        return got == size
