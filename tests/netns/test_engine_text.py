"""What strangers can make the real engine write, against how far their text is distrusted."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import ROOT
from lab.guest.engine import listening
from vff_qos.core.claims.accesslog import Claim, Scanner

from .harness import eventually

pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        importlib.util.find_spec("xray") is None, reason="needs the engine of tests/lab/xray.txt"
    ),
]

RUN_ENGINE = ROOT / "tests/lab/guest/engine.py"
ALICE = uuid.UUID("b831381d-6324-4d53-ad4f-8cda48b30811")
PASSWORD = "secret"
VLESS_WS, VMESS_WS, TROJAN_WS, TROJAN, SOCKS, HTTP, VLESS, XHTTP = range(31_001, 31_009)
INBOUNDS = set(range(31_001, 31_009))
TAG = "vless-東京"
STAMP = b"2026/11/20 16:00:00.000001"
FORGER = b"203.0.113.9:4444"
FORGED = STAMP + b" from " + FORGER + b" accepted tcp:b:443 [i >> o] email: victim@x"
HONEST = b" email: alice@x"
TROJAN_KEY = hashlib.sha224(PASSWORD.encode()).hexdigest().encode() + b"\r\n\x01"


def config(directory: Path, mixed: bool) -> dict[str, object]:
    vless: dict[str, object] = {
        "clients": [{"id": str(ALICE), "email": "alice@x"}],
        "decryption": "none",
    }
    websocket: dict[str, object] = {"network": "ws", "wsSettings": {"path": "/w"}}
    inbounds: list[tuple[int, str, str, dict[str, object], dict[str, object]]] = [
        (VLESS_WS, "vless-ws", "vless", vless, websocket),
        (VMESS_WS, "vmess-ws", "vmess", {"clients": vless["clients"]}, websocket),
        (TROJAN_WS, "trojan-ws", "trojan", {"clients": [{"password": PASSWORD}]}, websocket),
        (TROJAN, "trojan", "trojan", {"clients": [{"password": PASSWORD}]}, {}),
        (SOCKS, "socks", "socks", {}, {}),
        (HTTP, "http", "http", {}, {}),
        (VLESS, TAG, "vless", vless, {}),
        (XHTTP, "xhttp", "vless", vless, {"network": "xhttp", "xhttpSettings": {"path": "/x"}}),
    ]
    access = str(directory / "access.log")
    return {
        "log": {"loglevel": "info", "access": access,
                "error": access if mixed else str(directory / "error.log")},
        "inbounds": [
            {"listen": "127.0.0.1", "port": port, "tag": tag, "protocol": protocol,
             "settings": rest, **({"streamSettings": stream} if stream else {})}
            for port, tag, protocol, rest, stream in inbounds
        ],
        "outbounds": [{"tag": "nowhere", "protocol": "blackhole"}],
    }  # fmt: skip


class Engine:
    """The engine on loopback, and what it writes."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "access.log"
        self.scanner = Scanner()
        self._read = 0

    def send(self, port: int, *pieces: bytes) -> None:
        """Open a connection, send the pieces one by one, wait for what is answered or closed."""
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.settimeout(0.3)
            for piece in pieces:
                sock.sendall(piece)
                with contextlib.suppress(TimeoutError):
                    sock.recv(4_096)

    def close_websocket(self, port: int, before: bytes, reason: bytes) -> None:
        """Send some bytes, then the frame that closes, with the longest part of a reason."""
        key = base64.b64encode(os.urandom(16)).decode()
        hello = (
            "GET /w HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        ).encode()
        self.send(port, hello, _frame(2, before), _frame(8, struct.pack(">H", 1000) + reason[:123]))

    def claims(self, count: int, text: bytes = b"") -> list[Claim]:
        """Claims of what was written since, which must be at least ``count`` lines, and have this
        text: the engine's own lines may come between."""

        def is_there() -> bool:
            data = self.log.read_bytes()[self._read :]
            return data.count(b"\n") >= count and text in data

        eventually(is_there)
        time.sleep(0.2)
        data = self.log.read_bytes()[self._read :]
        self._read += len(data)
        return self.scanner.scan(data)

    def visit(self, name: bytes = b"a.example") -> None:
        """An honest customer's connection."""
        self.send(VLESS, b"\0" + ALICE.bytes + b"\0\1\0\x50\2" + bytes([len(name)]) + name)


def _frame(kind: int, data: bytes) -> bytes:
    assert len(data) < 126
    return bytes([0x80 | kind, 0x80 | len(data), 0, 0, 0, 0]) + data


#: Whether access and error log share a file.
OWN, MIXED = "own", "mixed"
own_file = pytest.mark.parametrize("engine", [OWN], indirect=True)
mixed_file = pytest.mark.parametrize("engine", [MIXED], indirect=True)


@pytest.fixture(params=[OWN, MIXED])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(tmp_path, request.param == MIXED)))
    made = Engine(tmp_path)
    process = subprocess.Popen([sys.executable, str(RUN_ENGINE), str(path)])
    try:
        eventually(lambda: listening() >= INBOUNDS, 20.0)
        yield made
    finally:
        process.terminate()
        process.wait()


def _trusted_forgeries(claims: list[Claim]) -> list[Claim]:
    return [c for c in claims if c.source == FORGER and not c.tainted]


def test_a_close_reason_forges_nothing_with_or_without_an_account(engine: Engine) -> None:
    for port, before in ((VLESS_WS, b"\0abc"), (VLESS_WS, b"\0" + ALICE.bytes), (VMESS_WS, b"abc"),
                         (TROJAN_WS, TROJAN_KEY)):  # fmt: skip
        engine.close_websocket(port, before, b"\n" + FORGED)
        claims = engine.claims(2, FORGER)
        assert [c for c in claims if c.source == FORGER], "the attack has failed"
        assert _trusted_forgeries(claims) == []
    assert len(engine.scanner.strangers) >= 4


def test_the_longest_name_forges_nothing(engine: Engine) -> None:
    name = b"x\n" * ((254 - len(FORGED)) // 2) + b"\n" + FORGED
    assert 250 < len(name) <= 255
    engine.send(TROJAN, TROJAN_KEY + b"\x03" + bytes([len(name)]) + name + b"\0\x50\r\n")
    claims = engine.claims(len(name.splitlines()), FORGER)
    assert [c for c in claims if c.source == FORGER], "the attack has failed"
    assert _trusted_forgeries(claims) == []


def test_honest_lines_name_their_user_whatever_the_tag(engine: Engine) -> None:
    engine.claims(0)
    engine.scanner = Scanner()
    engine.visit()
    (claim,) = [claim for claim in engine.claims(1, HONEST) if claim.email]
    assert claim.email == b"alice@x"
    assert claim.detour == f"{TAG} >> nowhere".encode()


@own_file
def test_lawful_lines_of_any_length_are_lawful(engine: Engine) -> None:
    engine.claims(0)
    for length in (3_043, 8_191):
        engine.send(SOCKS, b"\4\1\0\x50\0\0\0\1u\0" + b"a" * length + b"\0")
    for length in (3_043, 60_000):
        url = b"http://a.example/?\xc2\xa0" + b"u" * length
        engine.send(HTTP, b"GET " + url + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    engine.visit()
    claims = engine.claims(5, HONEST)
    assert [claim.tainted for claim in claims if claim.email] == [False]
    assert engine.scanner.counters.unparsed == 0


@mixed_file
def test_a_path_forges_nothing_in_a_mixed_log(engine: Engine) -> None:
    quoted = FORGED.replace(b" ", b"%20").replace(b">", b"%3E")
    for length in (2_500, 11_500):
        head = b"GET /" + b"q" * length + b"%0A" + quoted + b"%0A HTTP/1.1\r\nHost: a\r\n\r\n"
        engine.send(XHTTP, head)
        claims = engine.claims(2, FORGER)
        assert [c for c in claims if c.source == FORGER], "the attack has failed"
        assert _trusted_forgeries(claims) == []


@own_file
def test_rejections_without_a_strangers_text_taint_nobody(engine: Engine) -> None:
    engine.claims(0)
    engine.send(TROJAN, b"GET / HTTP/1.0\r\n\r\n")
    engine.send(VLESS, b"\5" + b"x" * 30)
    engine.send(VLESS, b"\0" + b"x" * 30)
    engine.send(VLESS, b"\0" + ALICE.bytes + b"\0\1\0\x50\2\3a b")
    engine.send(SOCKS, b"\5\1\0", b"\5\7\0\3\3a b\0\x50")
    engine.visit()
    claims = engine.claims(6, HONEST)
    assert [claim.tainted for claim in claims if claim.email] == [False]
    assert engine.scanner.counters.harmless >= 5
