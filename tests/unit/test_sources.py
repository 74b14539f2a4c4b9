"""Webhook and journal as sources: real sockets, real journal files, hostile input."""

from __future__ import annotations

import http.client
import itertools
import json
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

from vff_qos.core.claims.accesslog import Claim, Scanner, client_end, parse_source
from vff_qos.core.claims.webhook_event import Event, Nothing, read_event
from vff_qos.core.http import MAX_BODY_BYTES, MAX_HEAD_BYTES, BadRequest, Parser, Request
from vff_qos.errors import SourceError
from vff_qos.sources.webhook import WebhookSource

SAMPLES = (Path(__file__).parents[1] / "samples" / "webhook.ndjson").read_bytes().splitlines()
#: When the samples were written.
THEN = 1_795_191_107.0

#: source, inbound tag, email and our end of each sample; None where nobody is named.
EXPECTED = [
    None
    if expected is None
    else (parse_source(expected[0]), *expected[1:3], parse_source(expected[3]))
    for expected in (
        (b"127.0.0.5:48625", b"vless-in", b"alice@x", b"127.0.0.1:21001"),
        (b"127.0.0.5:41497", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.6:57517", b"vless-in", b"alice@x", b"127.0.0.1:21001"),
        (b"127.0.0.7:39461", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.7:39461", b"vless-in", b"bob@x", b"127.0.0.1:21001"),
        (b"127.0.0.1:57738", b"socks-in", b"sockuser", b"127.0.0.1:21006"),
        None,
    )
]


def _event(**fields: object) -> bytes:
    event = {"email": "alice@x", "source": "192.0.2.5:1234", "inboundTag": "in",
             "inboundLocal": "198.51.100.1:443", "ts": int(THEN)}  # fmt: skip
    return json.dumps(event | fields).encode()


def _claim(**fields: object) -> Claim:
    event = read_event(_event(**fields), THEN)
    assert isinstance(event, Event)
    return event.claim


def _ends(claim: Claim) -> tuple[object, ...]:
    """What a claim says, as `EXPECTED` has it."""
    return claim.end, claim.detour, claim.email, claim.local


def eventually(check: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait until ``check`` is true."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


# -- events -------------------------------------------------------------------------------------


def test_each_sample_gives_the_claim_of_its_connection() -> None:
    for body, expected in zip(SAMPLES, EXPECTED, strict=True):
        got = read_event(body, THEN)
        if expected is None:
            assert got is Nothing.NO_USER
            continue
        assert isinstance(got, Event)
        assert _ends(got.claim) == expected
        assert not got.claim.tainted


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("192.0.2.5:1", b"192.0.2.5:1"),
        ("tcp:192.0.2.5:1", b"tcp:192.0.2.5:1"),
        ("udp:[2001:DB8::7]:65535", b"udp:[2001:db8::7]:65535"),
        ("[::ffff:192.0.2.5]:7", b"192.0.2.5:7"),
    ],
)
def test_the_end_is_that_of_a_log_line(text: str, source: bytes) -> None:
    assert _claim(source=text).end == parse_source(source)


def test_the_key_of_a_claim_tells_flows_apart() -> None:
    sources = ("192.0.2.5:1", "192.0.2.5:256", "192.0.2.1:5", "[2001:db8::7]:1",
               "[::192.0.2.5]:1")  # fmt: skip
    locals_ = (None, "198.51.100.1:443", "198.51.100.1:444", "198.51.100.2:443",
               "[2001:db8::1]:443")  # fmt: skip
    claims = {
        (claim.end, claim.local): claim.source
        for claim in (_claim(source=s, inboundLocal=own) for s in sources for own in locals_)
    }
    assert len(set(claims.values())) == len(claims) > len(sources)
    assert _claim().source == _claim(email="bob@x", source="udp:192.0.2.5:1234").source
    # Without our end it is what the assigner remembers a client's flows by.
    alone = _claim(inboundLocal=None)
    assert alone.source == client_end(alone) == client_end(_claim())


@pytest.mark.parametrize(
    "text",
    ["192.0.2.5:0", "0.0.0.0:0", "@", "unix:/x", "example.com:5", "192.0.2.5", "1.2.3.400:5",
     "192.0.2.5:99999", "", None, "192.0.2.5:1\n", "\u0661.2.3.4:5"],
)  # fmt: skip
def test_what_is_no_socket_claims_nothing(text: str | None) -> None:
    assert read_event(_event(source=text), THEN) is Nothing.NO_FLOW


@pytest.mark.parametrize(
    "local", [None, "0.0.0.0:443", "[::]:443", "[2001:db8::1]:443", "x", "198.51.100.1:0"]
)
def test_a_local_end_that_cannot_be_the_flows_is_left_out(local: str | None) -> None:
    assert _claim(inboundLocal=local).local is None


@pytest.mark.parametrize(
    "email",
    ["", "a\nb", "a\x00", "a\x7f", "a\ufffdb", "\ud800", "a" * 321, "\u00e9" * 161,
     "\x01restricted"],
)  # fmt: skip
def test_an_email_that_no_log_could_hold_is_dropped(email: str) -> None:
    assert read_event(_event(email=email), THEN) is Nothing.BAD_EMAIL


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufffd"),
               max_size=330))  # fmt: skip
def test_the_webhook_and_the_log_hold_the_same_emails(email: str) -> None:
    line = f"2026/11/20 15:48:00 from 192.0.2.5:1 accepted tcp:a:1 [i >> o] email: {email}\n"
    logged = [claim.email for claim in Scanner().scan(line.encode()) if claim.email]
    event = read_event(_event(email=email), THEN)
    assert logged == ([event.claim.email] if isinstance(event, Event) else [])


@pytest.mark.parametrize("email", ["1", "a b | c: ]", "\u0438\u0432\u0430\u043d", "x" * 320])
def test_emails_of_panels_are_kept_as_they_are(email: str) -> None:
    assert _claim(email=email).email == email.encode()


def test_an_event_that_waited_for_more_than_a_minute_is_stale() -> None:
    assert read_event(_event(ts=THEN - 61), THEN) is Nothing.STALE
    event = read_event(_event(ts=THEN - 59), THEN)
    assert isinstance(event, Event)
    assert event.age_s == 59


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b"1", b'{"email":"a"}', b"\xff" + _event(), b"\xef\xbb\xbf{}",
     _event(email=1), _event(source=[]), _event(inboundTag={}), _event(inboundLocal=1),
     _event(ts="now"), _event(ts=True), _event(ts=None), _event(ts=-1), b"[" * 60_000,
     b'{"email":"a","source":"1.2.3.4:5","ts":1e999}', _event()[:-1],
     b'{"email":"a","source":"1.2.3.4:5","ts":' + b"9" * 4_000 + b"}",
     _event().decode().encode("utf-16")],
)  # fmt: skip
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_event(body, THEN)


@given(st.text(max_size=2048))
def test_no_name_that_a_customer_chose_changes_the_claim(name: str) -> None:
    plain = _claim()
    assert _claim(destination=f"{name}:443", originalTarget=f"tcp:{name}:443") == plain


@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["email", "source", "ts", "inboundTag", "x"]), inner),
    max_leaves=8).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_garbage_gives_no_claim_that_is_not_whole(body: bytes) -> None:
    try:
        got = read_event(body, THEN)
    except ValueError:
        return
    if isinstance(got, Event):
        event = json.loads(body)
        assert got.claim.email is not None
        assert got.claim.email.decode() == event["email"]
        assert got.claim.end is not None


# -- HTTP ---------------------------------------------------------------------------------------


def _post(body: bytes, *lines: str) -> bytes:
    head = ["POST / HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def _feed(data: bytes, cuts: list[int], authorization: bytes = b"") -> tuple[list[Request], int]:
    """The requests and the status of the refusal (0: none)."""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parser, requests, start = Parser(authorization), [], 0
    for end in edges:
        while start < end:
            piece = data[start : min(end, start + parser.room)]
            assert piece, "a parser that takes nothing would hang"
            start += len(piece)
            try:
                requests += parser.feed(piece)
            except BadRequest as error:
                return requests, error.status
            assert parser.room > 0
    return requests, 0


_LINE = b"POST / HTTP/1.1\r\n"


@given(bodies=st.lists(st.binary(max_size=200), max_size=4),
       cuts=st.lists(st.integers(0, 1500), max_size=12))  # fmt: skip
def test_requests_survive_any_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(_post(body, "Authorization: Bearer x") for body in bodies)
    for authorization in (b"", b"Bearer x"):
        requests, status = _feed(data, cuts, authorization)
        assert [request.body for request in requests] == bodies
        assert status == 0
    assert _feed(data, cuts, b"Bearer y") == ([], 403 if bodies else 0)


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5),
       prefix=st.sampled_from([b"", _LINE, _LINE + b"Content-Length: "]))  # fmt: skip
def test_random_bytes_end_in_a_refusal_or_in_waiting(
    data: bytes, cuts: list[int], prefix: bytes
) -> None:
    requests, _status = _feed(prefix + data, cuts)
    for request in requests:
        with pytest.raises(ValueError, match=r"\w"):
            read_event(request.body, THEN)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\n\r\n", 411),
        (b"POST / HTTP/2.0\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\nContent-Length: 0\n\n\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1,1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 417),
        (f"POST / HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(), 413),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES, 431),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"y" * (MAX_HEAD_BYTES + 1), 431),
    ],
)
def test_what_is_not_a_bounded_post_is_refused(data: bytes, status: int) -> None:
    assert _feed(data, []) == ([], status)
    assert _feed(data, list(range(0, len(data), 7)))[1] == status


def test_hostile_heads_cost_no_time() -> None:
    spaces = b"POST / HTTP/1.1\r\nX:" + b" " * 8_000 + b"\x00\r\n\r\n"
    before = time.monotonic()
    assert _feed(spaces, []) == ([], 400)
    assert time.monotonic() - before < 0.1


def test_a_parser_never_holds_more_than_one_request() -> None:
    parser = Parser()
    parser.feed(_post(b"x" * MAX_BODY_BYTES)[:-1])
    assert 0 < parser.room < MAX_HEAD_BYTES + MAX_BODY_BYTES
    while parser.room > 1 and not parser.feed(b"x"):
        pass
    assert parser.idle or parser.room > MAX_HEAD_BYTES


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
        return [claim for _ in range(rounds) for claim in self.source.read()]

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
        assert [_ends(claim) for claim in claims] == ([expected] if expected else [])
    counters = server.source.counters
    assert (counters.lines, counters.claims, counters.harmless) == (7, 6, 1)
    assert vars(counters)["connections"] == 1
    assert vars(counters)["last_event_s"] == THEN
    assert server.source.tick() is None
    client.close()


def test_malformed_events_get_400_and_the_connection_lives_on(server: Server) -> None:
    client = Client(server.path)
    assert server.post(client, b"{") == (400, [])
    assert server.post(client, _event(email="a\nb")) == (200, [])
    status, claims = server.post(client, _event())
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
        sock.sendall(_post(_event()) + _post(_event(email="bob@x"), "Connection: close"))
        assert [claim.email for claim in server.read()] == [b"alice@x", b"bob@x"]
        assert sock.recv(1000).count(b"HTTP/1.1 200 OK\r\n") == 2
        assert sock.recv(1000) == b""


@given(cuts=st.lists(st.integers(1, 250), max_size=6))
def test_a_slow_client_stops_nobody(cuts: list[int]) -> None:
    path = Path(f"/tmp/vff-qos-test-{os.getpid()}.sock")
    server = Server(path)
    try:
        data = _post(_event())
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
    assert server.post(client, _event()) == (403, [])
    assert server.post(client, _event(), Authorization="Bearer 0123456789abcdeX") == (403, [])
    assert "token" in (server.source.tick() or "")
    status, claims = server.post(client, _event(), Authorization="Bearer 0123456789abcdef")
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
    monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: next(clock))
    engine = Client(server.path)
    assert server.post(engine, _event())[0] == 200
    half = _halves(server, 400, text)
    server.read(10)
    with server.raw() as late:
        late.sendall(_post(_event(email="bob@x")))
        assert [claim.email for claim in server.read(3)] == [b"bob@x"]
        assert late.recv(1000).startswith(b"HTTP/1.1 200")
    assert len(server.source._connections) <= 256
    # Who has spoken well before is not among those who went.
    sock = engine.sock
    assert [len(got) for _status, got in (server.post(engine, _event()),)] == [1]
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
    monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: now)
    half = _halves(server, 256, b"")
    server.read(6)
    assert len(server.source._connections) == 256
    with server.raw() as late:
        late.sendall(_post(_event()))
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
    monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: next(clock))
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
            sock.sendall(_post(_event())[len("POST / HT") :])
        assert len(server.read(3)) == 3
        other.communicate("")
    for sock in ours:
        sock.close()


def test_a_request_byte_by_byte_is_ended(server: Server) -> None:
    with server.raw() as slow, server.raw() as quick:
        data = _post(_event())
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
    monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: 1000.0)
    with server.raw() as sock:
        for ages, window in (
            ([0.25], (999.75, 1000.0)),
            ([7], (993.0, 994.0)),
            ([3, 0, 30], (970.0, 1000.0)),
            # The clock was set back since: as old as the engine's patience.
            ([-30], (995.0, 1000.0)),
            ([], (1000.0, 1000.0)),
        ):
            sock.sendall(b"".join(_post(_event(ts=THEN - age)) for age in ages))
            assert len(server.source.read()) == len(ages)
            assert server.source.window == window


def test_half_requests_are_ended_after_five_seconds(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.raw() as half, server.raw() as idle:
        half.sendall(b"POST / HT")
        server.read()
        now = time.monotonic()
        monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: now + 6)
        half.sendall(b"T")
        server.read()
        assert "whole within 5 s" in (server.source.tick() or "")
        assert half.recv(1) == b""
        idle.sendall(_post(_event()))
        assert len(server.read()) == 1


def test_silence_of_the_engine_is_told_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    assert server.source.tick() is None
    monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: now + 61)
    assert "nobody has connected" in (server.source.tick() or "")
    assert server.source.tick() is None


def test_a_silence_with_connections_is_another_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    with server.raw():
        server.read()
        monkeypatch.setattr("vff_qos.sources.webhook.time.monotonic", lambda: now + 61)
        assert "no event has come" in (server.source.tick() or "")


def test_a_client_that_reads_no_answers_is_let_go(server: Server) -> None:
    with server.raw() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        deaf.setblocking(False)
        request = _post(b"{}")
        for _ in range(3_000):
            try:
                deaf.send(request * 50)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            server.source.read()
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
        sock.sendall(_post(_event(), "Authorization: Bearer 0123456789abcdef"))
        claims: list[Claim] = []
        eventually(lambda: claims.extend(source.read()) or claims)
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
        client.sendall(_post(_event()))
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
