"""A node with a page: users with traffic and history, orders, doubts, a journal of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from vff_qos.core.htb import FIRST_USER_MINOR
from vff_qos.core.minor_table import MinorTable
from vff_qos.core.owners import ACTIVE
from vff_qos.state import State

from .harness import WAN, Client, eventually, run, user
from .journal_node import Told
from .senders import Flood

TOKEN = "a-token-of-24-characters"
MAJOR = 0x5100


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class PageNode(Told):
    """Its page listens at ``path``, or at a port of the namespace's loopback."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path = directory / "page.sock"
        self.page: subprocess.Popen[str] | None = None
        self.clients: list[Client] = []
        # One end of a device without a peer that is up sends nothing.
        run("ip", "link", "set", "wan1", "up")
        run("ip", "link", "set", "up1", "up")

    #: What is run; the module ``bench.follow`` is the same without repairs.
    program = "vff_qos"

    def command(self, *words: str) -> list[str]:
        return [self.program if word == "vff_qos" else word for word in super().command(*words)]

    def serve(self, bind: str = "", more: str = "") -> None:
        """Start the page and wait until it listens."""
        text = (self.directory / "settings.yml").read_text()
        if "web_bind" not in text:
            self.set(f"web_bind: {bind or f'unix:{self.path}'}\n{more}")
        self.page = subprocess.Popen(self.command("web"), stderr=subprocess.PIPE, text=True)
        if bind:
            host, _colon, port = bind.rpartition(":")
            eventually(lambda: _answers((host.strip("[]"), int(port))), 20)
        else:
            eventually(lambda: _answers(str(self.path), socket.AF_UNIX), 20)

    def ask(
        self, path: str, method: str = "GET", **fields: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields and body of an answer."""
        connection = _UnixConnection(self.path)
        try:
            headers = {name.replace("_", "-"): value for name, value in fields.items()}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def api(self, question: str) -> Any:
        """The JSON of an answer that must be well."""
        status, _fields, body = self.ask(f"/api/v1/{question}")
        assert status == 200, body
        return json.loads(body)

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        if self.page is not None:
            self.page.terminate()
            self.page.communicate(timeout=30)
        super().close()

    # -- something to see -------------------------------------------------------------------------

    def come(self, emails: list[str]) -> None:
        """Users with a live connection each."""
        self.clients += [user(self, email) for email in emails]

    def minors(self) -> dict[str, int]:
        """Of active users, by name."""
        state = State(str(self.directory / "state"), str(self.directory / "run"))
        found = {o.key: o.minor for o in state.owners() if o.state == ACTIVE and o.is_user}
        state.close()
        return found

    def remember(self, emails: list[str], days: int) -> None:
        """Accounts of so many days, as if the users had been here all the time; before the agent
        starts."""
        state = State(str(self.directory / "state"), str(self.directory / "run"))
        now_s = time.time()
        names = dict(enumerate(emails, FIRST_USER_MINOR))
        totals = [dict.fromkeys(names, 0), dict.fromkeys(names, 0)]
        for hour in range(days * 24, -1, -1):
            at_s = now_s - hour * 3600
            day_part = at_s % 86_400 / 86_400
            busy = 1.25 + math.sin((day_part - 0.35) * 2 * math.pi) + 0.3 * math.sin(hour * 1.7)
            for direction, share in ((0, 0.12), (1, 1.0)):
                for number, minor in enumerate(names):
                    moved = max(0.02, busy) * share * 9e8 / (number + 1) ** 0.7
                    totals[direction][minor] += int(moved)
                sent = MinorTable(totals[direction].items())
                state.accounts.book(direction, sent, lambda minor: [names[minor]], at_s)
        state.close()


def keep_sending(seconds: float, minors: list[int]) -> None:
    """Traffic of users, each with a rate of their own that changes slowly."""
    senders = []
    for number, minor in enumerate(minors):
        pair = []
        for device in (WAN, "vffqos0"):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, MAJOR << 16 | minor)
            sock.bind((device, 0))
            # Whoever is at their limit must not stop the others.
            sock.setblocking(False)
            pair.append(sock)
        senders.append((1.0 / (number + 1) ** 0.8, number, pair))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        at = time.monotonic()
        for weight, number, (down, up) in senders:
            count = int(90 * weight * (1.3 + math.sin(at / 9 + number * 2.1)))
            for sock, frames in ((down, count), (up, count // 7)):
                for _ in range(frames):
                    with contextlib.suppress(OSError):
                        sock.send(Flood.FRAME)
        time.sleep(0.25)
    for _weight, _number, pair in senders:
        for sock in pair:
            sock.close()


def _answers(where: object, family: int = socket.AF_INET) -> bool:
    with socket.socket(family) as sock:
        return sock.connect_ex(where) == 0  # type: ignore[arg-type]
