"""The auth hook: how long a login waits, beside a bare answer of the same server.

Each login is of a live UDP flow and ends with its mark in the kernel: the answer comes after it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vff_qos.core.hooks.credentials import hash_secret

from .rows import Report
from .world import Agent, agent, marked, wait_until

_HOOKS, _BARE, _PANEL, _PORT = 8014, 8015, 8016, 443
_TOKEN = secrets.token_urlsafe(16)
_ALICE, _BOB = "alices-secret", "bobs-secret"
_BARE_SERVER = """
import sys
from bottle import Bottle, request
from waitress import serve
app = Bottle()
@app.route("/hysteria", "POST")
def answer():
    request.body.read()
    return {"ok": True, "id": "alice"}
serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=24)
"""


def measure(report: Report, logins: int) -> None:
    """Half and 99 % of the logins are answered within; milliseconds.  In a namespace."""
    with agent(start=False) as follower:
        socket_at = f"unix:{follower.directory}/flows"
        settings = follower.etc / "settings.yml"
        kept = [line for line in settings.read_text().splitlines() if "access_log" not in line]
        flows = f"sources: [{{type: flows, listen: '{socket_at}'}}]"
        settings.write_text("\n".join([*kept, flows, ""]))
        follower.start()
        with _panel(), _bare(), _hooks(follower, socket_at):
            report.progress(f"logins at the auth hook, {logins:,} of each kind")
            kinds = (
                ("bare", _BARE, "", _ALICE), ("sha256", _HOOKS, f"/{_TOKEN}", _ALICE),
                ("scrypt_known", _HOOKS, f"/{_TOKEN}", f"bob:{_BOB}"),
                ("passed_on", _HOOKS, f"/{_TOKEN}", "carols-secret"),
            )  # fmt: skip
            for number, (kind, port, prefix, auth) in enumerate(kinds):
                first = _FIRST_PORT + number * logins
                _ask(port, prefix, auth, "127.0.0.1:9")
                before = marked()
                took = sorted(_logins(port, prefix, auth, range(first, first + logins)))
                if kind != "bare" and marked() - before != logins:
                    raise SystemExit(f"bench: {marked() - before} of {logins} logins marked")
                report.add(f"hooks.{kind}_p50_ms", [1e3 * took[len(took) // 2]], "ms")
                report.add(f"hooks.{kind}_p99_ms", [1e3 * took[len(took) * 99 // 100]], "ms")


#: No two logins have one tuple.
_FIRST_PORT = 10_000


def _logins(port: int, prefix: str, auth: str, ports: range) -> Iterator[float]:
    """Seconds that each takes, one after the other, from a port of its own."""
    for client_port in ports:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("", client_port))
            client.connect(("203.0.113.1", _PORT))
            client.send(b"hello")
            address, own_port = client.getsockname()
            yield _ask(port, prefix, auth, f"{address}:{own_port}")


def _ask(port: int, prefix: str, auth: str, addr: str) -> float:
    body = json.dumps({"addr": addr, "auth": auth, "tx": 0})
    start = time.perf_counter()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    client.request("POST", f"{prefix}/hysteria", body)
    answer = json.loads(client.getresponse().read())
    took = time.perf_counter() - start
    client.close()
    if not answer["ok"]:
        raise SystemExit(f"bench: {auth} was refused")
    return took


def _answers(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    return answers


@contextmanager
def _hooks(follower: Agent, socket_at: str) -> Iterator[None]:
    directory = follower.directory
    digest = hashlib.sha256(_ALICE.encode()).hexdigest()
    users = directory / "users.yml"
    users.write_text(f"alice: sha256${digest}\nbob: {hash_secret(_BOB, 'c2FsdA')}\n")
    users.chmod(0o600)
    (follower.etc / "hooks.yml").write_text(
        f"listen: 127.0.0.1:{_HOOKS}\ntoken: {_TOKEN}\nflows: {socket_at}\n"
        f"users_file: {users}\nauth_url: http://127.0.0.1:{_PANEL}/auth\n"
    )
    state = directory / "hooks-state"
    state.mkdir()
    process = subprocess.Popen(
        follower.command("hooks"),
        env=follower.environment | {"STATE_DIRECTORY": str(state), "MALLOC_ARENA_MAX": "1"},
    )
    try:
        wait_until("the hooks' port", _answers(_HOOKS), 20)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _bare() -> Iterator[None]:
    """Bottle and waitress, and nothing else."""
    process = subprocess.Popen([sys.executable, "-c", _BARE_SERVER, str(_BARE)])
    try:
        wait_until("the bare server's port", _answers(_BARE), 20)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _panel() -> Iterator[None]:
    """One on this host that answers at once: what is added is ours."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"ok": true, "id": "carol"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", _PANEL), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
