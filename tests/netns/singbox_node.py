"""The real sing-box as a Hysteria 2 server and its clients, who hop among the ports of a node."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time

from lab.singbox import binary
from vff_qos.core.flow import Flow
from vff_qos.kernel.packed.conntrack import decode_tuple

from .customers import CUSTOMERS, NODE, UDP, Site
from .harness import Node, eventually, run
from .tunnel import Echo, certificate

_FROM = re.compile(r"\[(\d+) [^]]+\] inbound/hysteria2\[in\]: inbound connection from (\S+)$")
_WHOSE = re.compile(r"\[(\d+) [^]]+\] inbound/hysteria2\[in\]: \[(\S+)\] inbound connection to ")
#: Where all clients come from.
HOME = CUSTOMERS[0]
ENGINE_PORT, TARGET_PORT, HOPS = 20_000, 7_000, (20_001, 20_100)


class HoppingSite(Site):
    """A node with the engine on one port and a range that is redirected to it.

    What the engine logs becomes lines as Xray has them: one when a user's first stream comes, none
    when its connection moves.
    """

    def __init__(self, node: Node, obfs: str = "", **settings: object) -> None:
        super().__init__(node, ports=(443,))
        self.set(hop={f"{HOPS[0]}-{HOPS[1]}": ENGINE_PORT}, **settings)
        node.make_table()
        node.start()
        self._obfs = {"obfs": {"type": "salamander", "password": obfs}} if obfs else {}
        self._programs: list[subprocess.Popen[str]] = []
        self._streams: dict[str, str] = {}
        self._ports = iter(range(7_001, 7_100))
        self._enter = ["nsenter", "-t", str(self._process.pid), "-n"]
        run(*self._enter, "ip", "link", "set", "lo", "up")
        directory = node.directory
        certificate(directory)
        self._target = Echo(TARGET_PORT)

    def serve(self, **users: str) -> None:
        """The engine, whose users are {name: password}."""
        directory = self.node.directory
        tls = {"enabled": True, "certificate_path": str(directory / "cert.pem"),
               "key_path": str(directory / "key.pem")}  # fmt: skip
        inbound = {
            "type": "hysteria2", "tag": "in", "listen": NODE[0], "listen_port": ENGINE_PORT,
            "users": [{"name": n, "password": p} for n, p in users.items()], "tls": tls,
            **self._obfs,
        }  # fmt: skip
        server = self._run("server", [inbound], [{"type": "direct"}], [])
        threading.Thread(target=self._follow, args=(server,), daemon=True).start()
        socket_there = f"{NODE[0]}:{ENGINE_PORT} "
        eventually(lambda: socket_there in run("ss", "-Hnul"), 20)

    def customer(self, password: str) -> socket.socket:
        """A stream through the tunnel of a client that hops; all of them have one address."""
        port = next(self._ports)
        inbound = {"type": "direct", "listen": "127.0.0.1", "listen_port": port,
                   "override_address": "127.0.0.1", "override_port": TARGET_PORT}  # fmt: skip
        outbound = {
            "type": "hysteria2", "server": NODE[0], "server_ports": [f"{HOPS[0]}:{HOPS[1]}"],
            "hop_interval": "5s", "password": password,
            "tls": {"enabled": True, "insecure": True}, **self._obfs,
        }  # fmt: skip
        client = self._run("client", [inbound], [outbound], self._enter)
        eventually(lambda: f"127.0.0.1:{port} " in run(*self._enter, "ss", "-Hntl"), 20)
        with self._entered():
            stream = socket.create_connection(("127.0.0.1", port), 10)
        self.drain(client)
        stream.settimeout(20)
        self._sockets.append(stream)
        return stream

    def translate(self) -> None:
        """The clients' flows leave by ports of a NAT's choice from now on, also those that there
        are."""
        rule = f"snat ip to {HOME}:30000-60000 random"
        run(
            *self._enter, "nft", "-f", "-",
            stdin="table inet nat { chain out { type nat hook postrouting priority 100; "
            f"oifname wan1 meta l4proto udp {rule}; }}; }};\n",
        )  # fmt: skip

    def forget_translations(self) -> None:
        """The NAT forgets them; the next datagram is given another port."""
        run(*self._enter, "conntrack", "-F")

    def count(self, name: str) -> int:
        """One of the agent's counters."""
        return int(str(self.status()[name]))

    def flows(self) -> dict[Flow, int]:
        """Marks of all UDP flows to the engine's ports, by their names."""
        found = {}
        for entry in self.node.conntrack.dump(0, 0):
            flow = decode_tuple(entry.tuple_raw)
            if flow is not None and flow.proto == UDP and HOPS[0] <= flow.dport <= HOPS[1]:
                found[flow] = entry.mark
        return found

    def _run(
        self,
        kind: str,
        inbounds: list[object],
        outbounds: list[object],
        before: list[str],
        **more: object,
    ) -> subprocess.Popen[str]:
        config = self.node.directory / f"{kind}-{time.monotonic_ns()}.json"
        log = {"level": "info", "timestamp": True}
        parts = {"log": log, "inbounds": inbounds, "outbounds": outbounds, **more}
        config.write_text(json.dumps(parts))
        program = subprocess.Popen(
            [*before, str(binary()), "run", "--disable-color", "-c", str(config)], text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._programs.append(program)
        return program

    def _follow(self, server: subprocess.Popen[str]) -> None:
        assert server.stderr is not None
        for line in server.stderr:
            if found := _FROM.search(line.rstrip()):
                self._streams[found[1]] = found[2]
            elif (found := _WHOSE.search(line)) and found[1] in self._streams:
                source = self._streams[found[1]]
                now = time.strftime("%Y/%m/%d %H:%M:%S")
                text = f"{now} from {source} accepted tcp:a.example:1 [in >> d] email: {found[2]}\n"
                self.node.write(text.encode())

    def drain(self, program: subprocess.Popen[str]) -> None:
        """Nobody reads what it says."""
        threading.Thread(target=self._drain, args=(program,), daemon=True).start()

    @staticmethod
    def _drain(client: subprocess.Popen[str]) -> None:
        assert client.stderr is not None
        for _line in client.stderr:
            pass

    def close(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()
        self._target.close()
        super().close()
