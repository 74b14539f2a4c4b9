"""The webhook as a source: real sockets, hostile clients."""

from __future__ import annotations

import http.client
import itertools
import os
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.webhook_samples import EXPECTED, SAMPLES, THEN, ends, post, posted
from vff_qos.core.claims.accesslog import Claim
from vff_qos.core.http import BadRequest, Parser
from vff_qos.errors import SourceError
from vff_qos.sources.webhook import WebhookSource

_LINE = b"POST / HTTP/1.1\r\n"


def eventually(check: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until ``check`` is true."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


# -- the webhook server -------------------------------------------------------------------------


class Client(http.client.HTTPConnection):
    """A client of the unix socket; the source answers while it waits."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(self.path)


class Server:
    """A webhook source on a unix socket."""

    def __init__(self, path: Path, token: str = "") -> None:
        self.path = str(path)
        self.source = WebhookSource(f"unix:{path}", token=token, clock=lambda: THEN)
        assert self.source.read() == []
        assert not self.source.replaying

    def post(self, client: Client, body: bytes, **headers: str) -> tuple[int, list[Claim]]:
        client.request("POST", "/", body, headers)
        claims = self.read()
        response = client.getresponse()
        response.read()
        return response.status, claims

    def read(self, rounds: int = 3) -> list[Claim]:
        """What comes of some rounds of the follower."""
        claims = []
        for _ in range(rounds):
            claims += self.source.read()
            self.source.settled()
        return claims

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "hook")
    yield made
    made.source.close()
    assert not os.path.exists(made.path)


def test_every_sample_that_is_posted_becomes_its_claim(server: Server) -> None:
    client = Client(server.path)
    for body, expected in zip(SAMPLES, EXPECTED, strict=True):
        status, claims = server.post(client, body)
        assert status == 200
        assert [ends(claim) for claim in claims] == ([expected] if expected else [])
    counters = server.source.counters
    assert (counters.lines, counters.claims, counters.harmless) == (7, 6, 1)
    assert vars(counters)["connections"] == 1
    assert vars(counters)["last_event_s"] == THEN
    assert server.source.tick() is None
    client.close()


def test_malformed_events_get_400_and_the_connection_lives_on(server: Server) -> None:
    client = Client(server.path)
    assert server.post(client, b"{") == (400, [])
    assert server.post(client, posted(email="a\nb")) == (200, [])
    status, claims = server.post(client, posted())
    assert (status, len(claims)) == (200, 1)
    assert server.source.counters.unparsed == 1
    assert "not printable" in (server.source.tick() or "")
    assert server.source.tick() is None
    client.close()


def test_broken_http_gets_400_and_ends_the_connection(server: Server) -> None:
    with server.raw() as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert server.read() == []
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert sock.recv(1000) == b""


def test_a_connection_stays_open_unless_the_client_says_close(server: Server) -> None:
    with server.raw() as sock:
        sock.sendall(post(posted()) + post(posted(email="bob@x"), "Connection: close"))
        assert [claim.email for claim in server.read()] == [b"alice@x", b"bob@x"]
        assert sock.recv(1000).count(b"HTTP/1.1 200 OK\r\n") == 2
        assert sock.recv(1000) == b""


@given(cuts=st.lists(st.integers(1, 250), max_size=6))
def test_a_slow_client_stops_nobody(cuts: list[int]) -> None:
    path = Path(f"/tmp/vff-qos-test-{os.getpid()}.sock")
    server = Server(path)
    try:
        data = post(posted())
        edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
        with server.raw() as slow, server.raw() as quick:
            claims = []
            for start, end in itertools.pairwise(edges):
                slow.sendall(data[start:end])
                quick.sendall(data)
                claims += server.read(2)
                assert quick.recv(1000).startswith(b"HTTP/1.1 200")
            assert len(claims) == len(edges)
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        server.source.close()


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "hook", token="0123456789abcdef")
    client = Client(server.path)
    assert server.post(client, posted()) == (403, [])
    assert server.post(client, posted(), Authorization="Bearer 0123456789abcdeX") == (403, [])
    assert "token" in (server.source.tick() or "")
    status, claims = server.post(client, posted(), Authorization="Bearer 0123456789abcdef")
    assert (status, len(claims)) == (200, 1)
    client.close()
    server.source.close()


def test_a_body_is_not_kept_for_who_has_no_token() -> None:
    parser = Parser(b"Bearer x")
    with pytest.raises(BadRequest) as caught:
        parser.feed(_LINE + b"Content-Length: 60000\r\nAuthorization: Bearer y\r\n\r\n")
    assert caught.value.status == 403


def _halves(server: Server, count: int, text: bytes = b"POST / HT") -> list[socket.socket]:
    """Connections that have begun to say something, or nothing."""
    made = [server.raw() for _ in range(count)]
    for sock in made:
        sock.sendall(text)
    return made


@pytest.mark.parametrize("text", [b"", b"POST / HT"])
def test_half_open_connections_keep_nobody_out(
    server: Server, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    clock = itertools.count(time.monotonic(), 0.003)
    monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: next(clock))
    engine = Client(server.path)
    assert server.post(engine, posted())[0] == 200
    half = _halves(server, 400, text)
    server.read(10)
    with server.raw() as late:
        late.sendall(post(posted(email="bob@x")))
        assert [claim.email for claim in server.read(3)] == [b"bob@x"]
        assert late.recv(1000).startswith(b"HTTP/1.1 200")
    assert len(server.source._connections) <= 256
    # Who has spoken well before is not among those who went.
    sock = engine.sock
    assert [len(got) for _status, got in (server.post(engine, posted()),)] == [1]
    assert engine.sock is sock
    refused = vars(server.source.counters)["refused"]
    assert set(refused) == {"silent"}
    assert refused["silent"] >= 400 - 256
    for sock in half:
        sock.close()


def test_who_has_to_wait_for_room_wakes_the_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: now)
    half = _halves(server, 256, b"")
    server.read(6)
    assert len(server.source._connections) == 256
    with server.raw() as late:
        late.sendall(post(posted()))
        poll = select.poll()
        poll.register(server.source.descriptors()[0], select.POLLIN)
        # Nobody is old enough to go, and nothing but time will change that.
        for _ in range(3):
            assert server.read(1) == []
            assert poll.poll(0)
        now += 0.03
        assert len(server.read(1)) == 1
    for sock in half:
        sock.close()


def test_of_two_processes_the_one_with_many_connections_makes_room(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(time.monotonic(), 0.003)
    monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: next(clock))
    program = (
        "import socket, sys, time\n"
        "made = [socket.socket(socket.AF_UNIX) for _ in range(300)]\n"
        "for sock in made: sock.connect(sys.argv[1])\n"
        "print('there', flush=True)\n"
        "sys.stdin.read()\n"
    )
    ours = _halves(server, 3)
    server.read(1)
    with subprocess.Popen(
        [sys.executable, "-c", program, server.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        server.read(10)
        for sock in ours:
            sock.sendall(post(posted())[len("POST / HT") :])
        assert len(server.read(3)) == 3
        other.communicate("")
    for sock in ours:
        sock.close()


def test_a_request_byte_by_byte_is_ended(server: Server) -> None:
    with server.raw() as slow, server.raw() as quick:
        data = post(posted())
        for number in range(65):
            slow.sendall(data[number : number + 1])
            server.read(1)
        assert slow.recv(1) == b""
        assert "in more than 64 pieces" in (server.source.tick() or "")
        assert vars(server.source.counters)["refused"] == {"slow": 1}
        quick.sendall(data)
        assert len(server.read()) == 1


def test_the_window_says_when_the_claims_were_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: 1000.0)
    with server.raw() as sock:
        for ages, window in (
            ([0.25], (999.75, 1000.0)),
            ([7], (993.0, 994.0)),
            ([3, 0, 30], (970.0, 1000.0)),
            # The clock was set back since: as old as the engine's patience.
            ([-30], (995.0, 1000.0)),
            ([], (1000.0, 1000.0)),
        ):
            sock.sendall(b"".join(post(posted(ts=THEN - age)) for age in ages))
            assert len(server.source.read()) == len(ages)
            server.source.settled()
            assert server.source.window == window


def test_half_requests_are_ended_after_five_seconds(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.raw() as half, server.raw() as idle:
        half.sendall(b"POST / HT")
        server.read()
        now = time.monotonic()
        monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: now + 6)
        half.sendall(b"T")
        server.read()
        assert "whole within 5 s" in (server.source.tick() or "")
        assert half.recv(1) == b""
        idle.sendall(post(posted()))
        assert len(server.read()) == 1


def test_silence_of_the_engine_is_told_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    assert server.source.tick() is None
    monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: now + 61)
    assert "nobody has connected" in (server.source.tick() or "")
    assert server.source.tick() is None


def test_a_silence_with_connections_is_another_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    with server.raw():
        server.read()
        monkeypatch.setattr("vff_qos.sources.posts.time.monotonic", lambda: now + 61)
        assert "no event has come" in (server.source.tick() or "")


def test_a_client_that_reads_no_answers_is_let_go(server: Server) -> None:
    with server.raw() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        deaf.setblocking(False)
        request = post(b"{}")
        for _ in range(3_000):
            try:
                deaf.send(request * 50)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            server.source.read()
            server.source.settled()
        else:
            pytest.fail("it is still connected")
    assert not server.source._connections
    assert vars(server.source.counters)["refused"]["deaf"] == 1


def test_the_socket_has_the_mode_and_the_group_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    source = WebhookSource(f"unix:{path}", group="root", mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_gid == 0
    source.close()
    with pytest.raises(SourceError, match="there is no group"):
        WebhookSource(f"unix:{path}", group="no-such-group")


def test_the_socket_of_a_killed_run_is_replaced_and_that_of_a_live_one_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "hook"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    source = WebhookSource(f"unix:{path}")
    with pytest.raises(SourceError, match="another process listens"):
        WebhookSource(f"unix:{path}")
    source.close()
    path.write_text("precious")
    with pytest.raises(SourceError, match="not a socket"):
        WebhookSource(f"unix:{path}")
    assert path.read_text() == "precious"
    with pytest.raises(SourceError, match="cannot listen: No such file"):
        WebhookSource(f"unix:{tmp_path}/nowhere/hook")


@pytest.mark.parametrize("listen", ["127.0.0.1:23980", "[::1]:23980"])
def test_a_loopback_port_serves_as_well(listen: str) -> None:
    source = WebhookSource(listen, token="0123456789abcdef", clock=lambda: THEN)
    source.read()
    host, _colon, port = listen.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 5) as sock:
        sock.sendall(post(posted(), "Authorization: Bearer 0123456789abcdef"))
        claims: list[Claim] = []

        def has_read() -> list[Claim]:
            claims.extend(source.read())
            source.settled()
            return claims

        eventually(has_read)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    with pytest.raises(SourceError, match="Address already in use"):
        WebhookSource(listen, token="0123456789abcdef")
    source.close()


def test_a_socket_that_systemd_holds_loses_no_event_of_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    program = (
        "import os, sys, time\n"
        "from vff_qos.sources.webhook import WebhookSource\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        f"source = WebhookSource('unix:{path}', clock=lambda: {THEN})\n"
        "source.read()\n"
        "while not (claims := source.read()): time.sleep(0.01)\n"
        "source.settled()\n"
        "source.close()\n"
        "print(claims[0].email.decode())\n"
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        # Nobody runs yet.
        client.connect(str(path))
        client.sendall(post(posted()))
        done = subprocess.run(
            [sys.executable, "-c", program, str(listener.fileno())],
            env={**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": ":".join(sys.path)},
            pass_fds=[listener.fileno()],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.stdout == "alice@x\n", done.stderr
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    listener.close()
    assert path.exists()
