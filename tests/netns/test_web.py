"""The page's server: who may ask, what the API answers, and that it changes nothing."""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vff_qos.state import State
from vff_qos.web import api
from vff_qos.web.files import STATIC

from .harness import Client, eventually, run, status, user
from .page_node import TOKEN, PageNode
from .senders import send_through

ALICE = "alice@x"


@pytest.fixture
def page(tmp_path: Path, trees: tuple[str, str]) -> Iterator[PageNode]:
    made = PageNode(tmp_path)
    yield made
    made.close()


def test_the_api_says_what_the_commands_say(page: PageNode) -> None:
    page.remember([ALICE, "bob@x"], 2)
    page.start()
    page.come([ALICE, "bob@x"])
    page.run("limit", ALICE, "--download", "4mbit", "--for", "1h", "--reason", "ticket 7")
    page.serve()
    eventually(lambda: page.api("users?email=alice@x")["users"][0]["download_bps"] == 4_000_000)

    def other() -> list[str]:
        """What the page says otherwise: a look of its own is some seconds old."""
        nonlocal said
        shown, said = page.api("status"), status(page)
        keys = "verdict", "reason", "findings", "version", "wan", "ifb", "overrides", "parked"
        return [key for key in keys if shown[key] != said[key]]

    said: dict[str, Any] = {}
    eventually(lambda: not other(), 30)
    (alice,) = page.api("users?email=alice@x")["users"]
    (told,) = [one for one in said["users"] if one["email"] == ALICE]
    rates = ("up_rate_bps", "down_rate_bps", "share", "up_bytes", "down_bytes")
    assert {k: v for k, v in told.items() if k not in rates}.items() <= alice.items()
    explained = page.api("explain?email=alice@x")
    assert explained["decided_by"] == "override"
    assert explained["layers"] == json.loads(page.run("explain", ALICE, "--json"))["layers"]
    used = page.api("usage?email=alice@x&since=1d&by=hour")
    (usage,) = json.loads(page.run("usage", ALICE, "--since", "1d", "--by", "hour", "--json"))[
        "users"
    ]
    assert used["users"]["spans"] == usage["spans"] and len(usage["spans"]) > 20
    both = json.loads(page.run("usage", "--since", "1d", "--by", "hour", "--json"))["users"]
    whole = page.api("usage?since=1d&by=hour")["users"]
    for key in ("upload_bytes", "download_bytes"):
        assert whole[key] == sum(one[key] for one in both)
        assert whole[key] == sum(span[key] for span in whole["spans"])
    assert page.api("restricted")["orders"][0]["why"] == "ticket 7"
    events = page.api("events?kind=override")["events"]
    assert "ticket 7" in events[0]["message"] and events[0]["fields"]["email"] == ALICE


def test_what_doctor_found_is_kept_for_the_page(page: PageNode) -> None:
    page.start()
    page.serve()
    assert page.api("doctor") == {"time": None, "verdict": "", "reason": "", "findings": []}
    done = subprocess.run(
        page.command("doctor", "--no-canary", "--keep", "--json"), capture_output=True, text=True
    )
    said, shown = json.loads(done.stdout), page.api("doctor")
    assert abs(shown.pop("time") - time.time()) < 60
    assert shown == said and shown["findings"]


def test_who_is_restricted_and_why(page: PageNode) -> None:
    page.start()
    client = Client("127.0.0.1", 4430)
    page.clients.append(client)
    page.write(client.line("alice@x"), client.line("mallory@x"))
    eventually(lambda: status(page)["restricted"]["flows"] == 1)
    page.serve()
    (one,) = page.api("restricted")["classes"]
    assert one["who"] == "(restricted) 127.0.0.1"
    (flow,) = one["flows"]
    assert f"127.0.0.1:{client.port} " in flow["flow"]
    assert "two users are named for it" in flow["why"] and "mallory@x" in flow["why"]


def test_a_page_for_nobody_who_has_not_the_token(page: PageNode) -> None:
    secret = page.directory / "token"
    secret.write_text(TOKEN + "\n")
    secret.chmod(0o640)
    page.start()
    page.serve(more=f"web_token_file: {secret}\n")
    basic = base64.b64encode(f"anna:{TOKEN}".encode()).decode()
    for path in ("/", "/page.js", "/api/v1/status", "/api/v1/stream", "/api/v1/openapi.json"):
        status_, fields, body = page.ask(path)
        assert status_ == 401 and fields["www-authenticate"].startswith("Basic "), path
        assert ALICE.encode() not in body
        assert page.ask(path, Authorization=f"Bearer {TOKEN}x")[0] == 401
        assert page.ask(path, Authorization="Basic !!")[0] == 401
    assert page.ask("/api/v1/status", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert page.ask("/", Authorization=f"Basic {basic}")[0] == 200
    assert page.ask("/healthz")[0] == 200


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("web_bind: 0.0.0.0:9470", "web_token_file: is needed where web_bind is not"),
        ("web_bind: 127.0.0.1:70000", "web_bind: 70000 is not a port"),
        ("web_bind: localhost:1", "web_bind: 'localhost:1' is not "),
        ("web_hosts: ['a b']", "web_hosts.0: 'a b' is not a host's name"),
    ],
)
def test_where_it_must_not_listen_is_refused(page: PageNode, text: str, problem: str) -> None:
    page.set(text + "\n")
    done = subprocess.run(page.command("check-config"), capture_output=True, text=True)
    assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_a_token_that_everybody_can_read_is_refused(page: PageNode) -> None:
    secret = page.directory / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o644)
    page.set(f"web_bind: unix:{page.path}\nweb_token_file: {secret}\n")
    done = subprocess.run(page.command("web"), capture_output=True, text=True)
    assert done.returncode == 2 and "everybody may read it" in done.stderr
    assert not page.path.exists()


def test_a_strangers_name_for_this_host_opens_nothing(page: PageNode) -> None:
    """DNS rebinding: a page of a stranger's asks us by the stranger's own name."""
    page.start()
    page.serve(more="web_hosts: [qos.example.com]\n")
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert page.ask("/api/v1/status", Host=host)[0] in (400, 421), host
    for host in ("localhost:9470", "127.0.0.1", "[::1]:80", "QOS.example.com", "localhost."):
        assert page.ask("/healthz", Host=host)[0] == 200, host


def test_nothing_can_be_changed_and_nothing_comes_from_elsewhere(page: PageNode) -> None:
    page.start()
    page.serve()
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert page.ask("/api/v1/status", method)[0] == 405
    answers = [page.ask(path) for path in ("/", "/nothing", "/api/v1/users?limit=0", "/page.css")]
    assert [status_ for status_, *_rest in answers] == [200, 404, 400, 200]
    for _status, fields, _body in answers:
        policy = fields["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert fields["x-content-type-options"] == "nosniff"
    for path in ("/../app.py", "/static/page.js", "/%2e%2e/app.py", "/uplot-license.txt/"):
        assert page.ask(path)[0] == 404
    texts = [path.read_text() for path in STATIC.iterdir() if path.name != "uplot.js"]
    assert not any(
        "http://" in t.replace("http://www.w3.org/", "") for t in texts if "MIT" not in t
    )


def test_bad_questions_are_told_what_is_allowed(page: PageNode) -> None:
    page.start()
    page.serve()
    for question, sentence in (
        ("users?sort=size", "sort: 'size' is not one of rate, up, down"),
        ("users?limit=501", "limit: '501' is not a whole number from 1 to 500"),
        ("users?x=1", "'x' is not a parameter here; allowed: email, match"),
        ("explain", "email is missing"),
        ("explain?email=a&email=b", "email stands twice"),
        ("users?match=%ff", "the query is not UTF-8"),
        ("usage?since=soon", "--since: 'soon' is not a time"),
        ("events?kind=all", "kind: 'all' is not one of started, "),
    ):
        code, _fields, body = page.ask(f"/api/v1/{question}")
        assert (code, sentence in json.loads(body)["error"]) == (400, True), body


def test_a_node_that_is_not_set_up_is_shown_as_that(page: PageNode) -> None:
    run("ip", "link", "del", "wan0")
    page.serve()
    shown = page.api("status")
    assert shown["verdict"] == "TROUBLE" and shown["follower"] is None
    assert page.api("live")["now"]["verdict"] == "TROUBLE"
    assert page.api("users")["users"] == []


def test_the_stream_tells_of_news_and_ends_with_the_page(page: PageNode) -> None:
    page.start()
    page.come([ALICE])
    page.serve()
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(page.path))
    sock.sendall(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    stream = sock.makefile("rb")
    minor = page.minors()[ALICE]

    def event(*kinds: bytes) -> tuple[bytes, dict[str, Any]]:
        for line in stream:
            if (kind := line.strip().removeprefix(b"event: ")) in kinds:
                return kind, json.loads(stream.readline().removeprefix(b"data: "))
        raise AssertionError("the stream has ended")

    # A finding may come between the two.
    verdicts: dict[bytes, str] = {}
    while len(verdicts) < 2 or len(set(verdicts.values())) > 1:
        kind, told = event(b"now", b"status")
        verdicts[kind] = told["verdict"]
    send_through("wan0", minor, 50)
    rates = [event(b"now")[1]["top"][0]["down_rate_bps"] for _ in range(3)]
    assert max(rates) > 0
    page.write_policy("users: {alice@x: {download: fast}}\n")
    while not any(one["kind"] == "policy" for one in event(b"status")[1]["findings"]):
        pass
    assert page.page is not None
    page.page.terminate()
    page.page.wait(20)
    assert page.page.returncode == 0
    while stream.readline():
        pass


def test_so_many_pages_and_no_more(page: PageNode) -> None:
    page.start()
    page.serve()
    open_ = []
    for _ in range(api.MAX_STREAMS):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(page.path))
        sock.sendall(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
        open_.append(sock)
    code, fields, _body = page.ask("/api/v1/stream")
    assert (code, fields["retry-after"]) == (503, "5")
    assert page.api("live")["now"]["verdict"]  # others are still answered
    for sock in open_:
        sock.close()

    def one_more() -> bool:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(page.path))
        sock.sendall(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with sock:
            return sock.recv(100).startswith(b"HTTP/1.1 200 OK")

    eventually(one_more, 60)


_AS_THE_PAGE = """
import os, sys
os.setgroups([int(sys.argv[1])])
os.setresgid(65533, 65533, 65533)
os.setresuid(65534, 65534, 65534)
from vff_qos.config import Paths
from vff_qos.commands.node import Node
from vff_qos.runfile import read_report
from vff_qos.state import StateError
paths = Paths(*sys.argv[2:])
with Node(paths, prints=False) as node:
    assert read_report(paths.run_dir) is not None
    assert any(owner.key == "alice@x" for owner in node.state.owners())
    assert node.state.trouble == ""
    try:
        node.state.set_value("x", 1)
    except StateError as error:
        assert "is read alone" in str(error)
    else:
        raise SystemExit("it could write")
"""


def test_the_pages_account_reads_the_agents_files_and_changes_none(page: PageNode) -> None:
    """As a member of the agent's group; a file of before, that only its owner reads, is opened."""
    group = 4711
    old = os.umask(0o077)
    try:
        State(str(page.directory / "state")).close()
        (page.directory / "state" / "state.db").chmod(0o600)
        page.start()
    finally:
        os.umask(old)
    client = user(page, ALICE)
    page.clients.append(client)
    eventually((page.directory / "run" / "follow.json").exists, 20)
    for path in [page.directory, *page.directory.rglob("*")]:
        os.chown(path, -1, group)
        if path.is_dir():
            path.chmod(0o2750)  # what is made anew has the group, too
    for path in Path(page.directory).parents:
        if path.stat().st_mode & stat.S_IXOTH == 0:
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    before = sorted((p.name, p.stat().st_mode) for p in page.directory.rglob("state*"))
    d = page.directory
    done = subprocess.run(
        [
            sys.executable, "-c", _AS_THE_PAGE, str(group), f"{d}/settings.yml", f"{d}/policy.yml",
            f"{d}/policy.d", f"{d}/state", f"{d}/run",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted((p.name, p.stat().st_mode) for p in d.rglob("state*")) == before
