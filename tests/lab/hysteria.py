"""Hysteria 2 beside the engine: a server on the node that asks our hooks, clients that hop."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from . import engine, network
from .labnode import GUEST, Lab
from .node import die_with_parent
from .progress import LabError, say, step

FOLDER = "/opt/lab/hysteria"
UNIT = "hysteria-lab"
PATIENCE_S = 60.0
HOP_S = 5


class Hysteria:
    """A server and its clients, until the block ends."""

    def __init__(self, lab: Lab, hook: str, port: int, hop: str) -> None:
        """``hook``: the URL that the server asks.  It listens at ``port``; clients use ``hop``."""
        self._lab, self._hook, self._port, self._hop = lab, hook, port, hop
        self._clients: list[Client] = []
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Hysteria:
        try:
            with step("starting Hysteria"):
                self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        config = {
            "listen": f":{self._port}",
            "tls": {"cert": "cert.pem", "key": "key.pem"},
            "auth": {"type": "http", "http": {"url": self._hook}},
            "ignoreClientBandwidth": True,
        }
        node, tree = self._lab.node, Path(self._folder.name) / "server"
        tree.mkdir()
        engine.certificate(tree)
        (tree / "config.yaml").write_text(json.dumps(config))  # YAML as well
        node.put(tree, FOLDER)
        node.put(GUEST / "hysteria.py", f"{FOLDER}/server")
        node.ssh(
            f"systemd-run --quiet --collect --unit={UNIT} --property=WorkingDirectory={FOLDER} "
            "--property=Nice=-10 --setenv=PYTHONPATH=/opt/hysteria "
            "--setenv=PYTHONDONTWRITEBYTECODE=1 "
            "--setenv=HYSTERIA_DISABLE_UPDATE_CHECK=1 /usr/bin/python3 server -c config.yaml"
        )
        up = f"journalctl -q -u {UNIT} | grep -q server.up.and.running"
        node.ssh(f"timeout {PATIENCE_S:.0f} sh -c 'until {up}; do sleep 0.5; done'")

    def _stop(self) -> None:
        for client in self._clients:
            client.stop()
        self._folder.cleanup()
        self._lab.node.ssh(f"systemctl stop {UNIT}; rm -r {FOLDER}")

    def client(self, secret: str, uplink: str, forwards: dict[int, int], mark: int = 0) -> Client:
        """Start a client on a device's link; local ports lead to ports of the target.

        ``mark`` is that of its packets (SO_MARK), so that they can be counted.
        """
        place = Path(self._folder.name) / f"client{len(self._clients)}"
        place.mkdir()
        (place / "client").symlink_to(GUEST / "hysteria.py")
        sockets = {"bindInterface": uplink, **({"fwmark": mark} if mark else {})}
        config = {
            "server": f"{network.NODE_IPV4}:{self._hop}",
            "auth": secret,
            "tls": {"sni": engine.TLS_NAME, "insecure": True},
            "transport": {"type": "udp", "udp": {"hopInterval": f"{HOP_S}s"}},
            "quic": {"sockopts": sockets},
            "tcpForwarding": [
                {"listen": f"127.0.0.1:{local}", "remote": f"{network.TARGET_IPV4}:{remote}"}
                for local, remote in forwards.items()
            ],
        }
        (place / "config.yaml").write_text(json.dumps(config))
        namespace = self._lab.node.internet.namespace("clients")
        command = ["nsenter", f"--net={namespace}", "--", sys.executable, "client"]
        self._clients.append(Client([*command, "-c", "config.yaml"], place))
        return self._clients[-1]


class Client:
    """A client's process."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command, self._folder, self._log = command, folder, folder / "log"
        self._start()

    def _start(self) -> None:
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(),
            )

    def wait(self) -> None:
        """Until it is logged in and listens.  Raises LabError with its last words.

        It gives up after 5 s, in which a busy emulated node may not have answered: then it begins
        anew, as a customer would.
        """
        deadline = time.monotonic() + PATIENCE_S
        while "TCP forwarding listening" not in (said := self._log.read_text()):
            if time.monotonic() > deadline:
                raise LabError(f"a client of Hysteria does not log in: {said.strip()[-300:]}")
            if self._process.poll() is not None:
                say(f"a client of Hysteria begins anew: {said.strip()[-100:]}")
                self._start()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
