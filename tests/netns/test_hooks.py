"""The hooks without an engine: who is let in when, what is kept, and whom it tells of.

GoProxy itself cannot be had here: its questions and reports are asked as its manual has them.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.hooks.credentials import hash_secret

from .customers import Site
from .harness import Node, eventually
from .hysteria_node import HOOKS_PORT, TOKEN, Hooks, Panel

ALICE, BOB = "alice@x", "bob@x"


@pytest.fixture
def site(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Site]:
    node = Node(tmp_path)
    made = Site(node)
    made.told()
    node.make_table()
    node.start()
    yield made
    node.stop()
    made.close()


@pytest.fixture
def hooks(site: Site) -> Iterator[Hooks]:
    """With a users file; not started."""
    made = Hooks(site.node)
    made.write_users({ALICE: "alices-secret", BOB: hash_secret("bobs-secret", "c2FsdA")})
    yield made
    made.stop()


@pytest.fixture
def panel() -> Iterator[Panel]:
    made = Panel()
    yield made
    made.stop()


@pytest.fixture
def passing(site: Site, panel: Panel) -> Iterator[Hooks]:
    """Those of a node whose panel decides; not started."""
    made = Hooks(site.node, users_file="", auth_timeout_sec=1,
                 auth_url=f"http://127.0.0.1:{panel.port}/auth?node=1")  # fmt: skip
    yield made
    made.stop()


def ok(hooks: Hooks, auth: str) -> str:
    """Who is let in; empty for nobody."""
    status, answer = hooks.login(auth)
    assert status == 200, answer
    assert answer["ok"] == bool(answer["id"])
    return str(answer["id"])


def test_who_is_let_in(hooks: Hooks) -> None:
    hooks.start()
    assert ok(hooks, "alices-secret") == ok(hooks, f"{ALICE}:alices-secret") == ALICE
    assert ok(hooks, f"{BOB}:bobs-secret") == BOB
    for wrong in (
        "",
        ":",
        "bobs-secret",
        f"{BOB}:",
        f"{BOB}:alices-secret",
        f"{ALICE}:",
        "x" * 9_000,
    ):
        assert ok(hooks, wrong) == "", wrong


def test_who_lacks_the_token_learns_nothing(hooks: Hooks) -> None:
    """Each customer reaches the port through the proxy itself."""
    hooks.start()
    body = json.dumps({"addr": "10.98.0.11:5", "auth": "alices-secret"}).encode()
    for token in ("x" * 16, "hysteria", "%00", "0123456789abcdeg", "%ff%fe"):
        status, _, text = hooks.ask("POST", "/hysteria", body, token)
        assert (status, b"alice" in text) == (400, False), token
    assert hooks.ask("POST", "/hysteria", b"{}")[0] == 400
    assert hooks.ask("POST", "/hysteria", b"\xff" * 70_000)[0] == 400


def test_the_users_file_is_looked_at_with_each_login(hooks: Hooks) -> None:
    hooks.start()
    assert ok(hooks, f"{BOB}:bobs-secret") == BOB
    hooks.write_users({BOB: "other", "carol": "carols"})
    assert ok(hooks, "alices-secret") == ok(hooks, f"{BOB}:bobs-secret") == ""
    assert (ok(hooks, "other"), ok(hooks, "carols")) == (BOB, "carol")
    assert hooks.has_said("hooks are answered at 127.0.0.1:8014: 2 users of")
    # A mistake changes nothing, and is said once.
    hooks.users.write_text("bob: [\n")
    assert ok(hooks, "carols") == ok(hooks, "carols") == "carol"
    eventually(lambda: hooks.has_said("users.yml:"))
    assert sum("not valid YAML" in line for line in hooks.said) == 1
    assert "not valid YAML" in hooks.status()["users_refused"]
    hooks.write_users({"carol": "carols"})
    assert ok(hooks, "carols") == "carol"
    assert hooks.status()["users_refused"] == ""


def test_a_file_that_others_may_read_is_refused(hooks: Hooks) -> None:
    hooks.start()
    hooks.write_users({"mallory": "hers"}, 0o640)
    assert (ok(hooks, "hers"), ok(hooks, "alices-secret")) == ("", ALICE)
    eventually(lambda: hooks.has_said("has mode 0640, and holds secrets"))
    hooks.users.chmod(0o600)
    assert (ok(hooks, "hers"), ok(hooks, "alices-secret")) == ("mallory", "")
    hooks.stop()
    # At the start there is no last good one.
    hooks.users.chmod(0o604)
    done = subprocess.run(hooks.node.command("hooks"), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr == (
        f"vff-qos hooks: {hooks.users}: has mode 0604, and holds secrets; "
        f"'chmod 0600 {hooks.users}' ends that\n"
    )


def test_guesses_at_slow_hashes_are_few_and_hold_nobody_up(hooks: Hooks) -> None:
    hooks.start()
    assert ok(hooks, f"{BOB}:bobs-secret") == BOB
    guessing = threading.Thread(
        target=lambda: [ok(hooks, f"{BOB}:guess-{number}") for number in range(40)]
    )
    guessing.start()
    for _ in range(20):
        # Whoever was right before, and whose secret is not slow, waits for none of it.
        assert ok(hooks, f"{BOB}:bobs-secret") == BOB
        assert ok(hooks, "alices-secret") == ALICE
    guessing.join()
    # That address has no guess left; another has.
    assert ok(hooks, "bob@x:guess") == ""
    hooks.write_users({BOB: hash_secret("news-secret", "c2FsdB")})
    assert hooks.login(f"{BOB}:news-secret", "10.98.0.12:1")[1]["ok"]


def test_the_panels_answer_is_believed_and_kept_for_when_it_is_away(
    passing: Hooks, panel: Panel
) -> None:
    panel.users |= {"a": ALICE, "b": BOB}
    passing.start()
    assert (ok(passing, "a"), ok(passing, "b"), ok(passing, "c")) == (ALICE, BOB, "")
    # Changed its mind: at once, also for when it is away.
    del panel.users["b"]
    assert ok(passing, "b") == ""
    panel.users["late"] = "late"
    panel.stop()
    assert (ok(passing, "a"), ok(passing, "b"), ok(passing, "late")) == (ALICE, "", "")
    assert passing.has_said("the panel at http://127.0.0.1:8090 does not answer logins: ")
    # Whoever was let in before is so after a restart.
    passing.stop()
    passing.start()
    assert (ok(passing, "a"), ok(passing, "late")) == (ALICE, "")
    panel.start()
    eventually(lambda: ok(passing, "late") == "late", 15)
    eventually(lambda: passing.has_said("answers logins again"))


def test_a_panel_that_hangs_or_breaks_is_one_that_is_away(passing: Hooks, panel: Panel) -> None:
    panel.users["a"] = ALICE
    passing.start()
    assert ok(passing, "a") == ALICE
    panel.hangs = True
    began = time.monotonic()
    assert ok(passing, "a") == ALICE
    assert time.monotonic() - began < 4  # the panel would take five
    # Nobody else waits for it meanwhile.
    asked = panel.asked
    assert [ok(passing, "a") for _ in range(10)] == [ALICE] * 10
    assert panel.asked == asked
    panel.hangs, panel.breaks = False, 502
    passing.stop()
    passing.start()
    assert (ok(passing, "a"), ok(passing, "b")) == (ALICE, "")
    eventually(lambda: passing.has_said("it answered 502"))


def test_goproxys_hook_and_whose_connection_it_is(site: Site, hooks: Hooks) -> None:
    site.node.write_policy(
        "users:\n  alice@x: {upload: 5mbit, download: 10mbit, connections: 9, "
        "over_connections: refuse}\n"
    )
    hooks.start()
    flow = site.connect()
    end = "{}:{}".format(*flow.source)
    query = (
        f"?user={ALICE}&pass=%s&client_addr={end}&local_addr=10.98.0.1:443&service=socks&target=x"
    )
    assert hooks.ask("GET", "/goproxy/auth" + query % "wrong")[0] == 401
    assert site.holders(flow) == [""]
    status, headers, _ = hooks.ask("GET", "/goproxy/auth" + query % "alices-secret")
    assert status == 204
    eventually(lambda: site.holders(flow) == [ALICE])
    # The larger of both directions, in bytes: the kernel holds each.
    assert (headers["usertotalrate"], headers["userconns"]) == (str(10_000_000 // 8), "9")
    assert hooks.ask("GET", f"/goproxy/auth?user={BOB}&pass=bobs-secret&ip=10.98.0.11")[0] == 204
    assert hooks.status()["no_flow"] == 1


def test_limits_are_those_of_the_person_that_a_login_is(site: Site, hooks: Hooks) -> None:
    identities = site.node.directory / "identities.yml"
    identities.write_text("people: {ann: [alice@x, bob@x]}\n")
    site.node.write_policy("users: {ann: {upload: 5mbit, download: 10mbit}}\n")
    hooks.start()
    query = f"?user={ALICE}&pass=alices-secret&ip=10.98.0.11"

    def rate() -> str:
        status, headers, _ = hooks.ask("GET", "/goproxy/auth" + query)
        assert status == 204
        return headers["usertotalrate"]

    eventually(lambda: rate() == str(10_000_000 // 8))
    site.node.write_policy("users: {ann: {blocked: cut}}\n")
    eventually(lambda: hooks.ask("GET", "/goproxy/auth" + query)[0] == 401)
    # Somebody else again.
    identities.write_text("people: {ann: [bob@x]}\n")
    eventually(lambda: hooks.ask("GET", "/goproxy/auth" + query)[0] == 204)


def test_goproxys_panel_says_more(passing: Hooks) -> None:
    passing.start()
    assert passing.ask("GET", "/goproxy/auth?user=carol&pass=wrong")[0] == 401
    status, headers, _ = passing.ask("GET", "/goproxy/auth?user=carol&pass=right")
    assert (status, headers["userconns"]) == (204, "7")


def test_goproxys_reports_tell_whose_and_how_much(site: Site, hooks: Hooks) -> None:
    hooks.start()
    flow, other = site.connect(), site.connect()
    end, far = "{}:{}".format(*flow.source), "{}:{}".format(*other.source)
    report = f"?bytes=1500&username={ALICE}&client_addr={end}&id=socks"
    assert hooks.ask("GET", "/goproxy/traffic" + report)[0] == 204
    many = [{"bytes": 500, "username": BOB, "client_addr": far}, {"bytes": 7, "username": ALICE}]
    assert hooks.ask("POST", "/goproxy/traffic", json.dumps(many).encode())[0] == 204
    eventually(lambda: site.holders(flow, other) == [ALICE, BOB])
    assert hooks.ask("POST", "/goproxy/traffic", b'[{"bytes": "x"}]')[0] == 400
    hooks.stop()
    hooks.start()
    usage = json.loads(hooks.ask("GET", "/usage")[2])
    assert usage["hysteria"] is None
    moved = {user: (row["bytes"], row["reports"]) for user, row in usage["reported"].items()}
    assert moved == {ALICE: (1_507, 2), BOB: (500, 1)}


def test_claims_wait_while_the_agent_is_away(site: Site, hooks: Hooks) -> None:
    hooks.start()
    site.node.stop()
    flows = [site.connect() for _ in range(3)]
    for flow in flows:
        assert hooks.login("alices-secret", "{}:{}".format(*flow.source))[1]["ok"]
        # TCP: this engine says udp, so nothing is given to it.
    late = site.connect(proto=socket.IPPROTO_UDP)
    assert hooks.login("alices-secret", "{}:{}".format(*late.source))[1]["ok"]
    site.node.start()
    eventually(lambda: site.holders(late) == [ALICE])
    assert site.holders(*flows) == ["", "", ""]
    eventually(lambda: hooks.status()["agent"] == "")


def test_many_logins_at_once(site: Site, hooks: Hooks) -> None:
    hooks.start()
    flows = [site.connect(proto=socket.IPPROTO_UDP) for _ in range(60)]
    threads = [
        threading.Thread(target=hooks.login, args=("alices-secret", "{}:{}".format(*f.source)))
        for f in flows
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: site.holders(*flows) == [ALICE] * 60)
    assert hooks.status()["lost"] == 0


def test_a_secret_is_hashed_without_a_trace(hooks: Hooks) -> None:
    done = subprocess.run(
        hooks.node.command("hooks", "--hash"), input="s3cret\n", capture_output=True, text=True
    )
    hooks.write_users({"carol": done.stdout.strip()})
    hooks.start()
    assert ok(hooks, "carol:s3cret") == "carol"


def test_who_holds_connections_keeps_nobody_out(hooks: Hooks) -> None:
    """Four hundred that say nothing, or a byte now and then, by way of the proxy."""
    hooks.start()
    held = []
    for number in range(400):
        held.append(socket.create_connection(("127.0.0.1", HOOKS_PORT)))
        held[-1].sendall(b"POST /guess/hysteria HTTP/1.1\r\nX: "[: number % 40])
    for _ in range(20):
        assert ok(hooks, "alices-secret") == ALICE
        held.append(socket.create_connection(("127.0.0.1", HOOKS_PORT)))
    for sock in held:
        sock.close()


def test_a_strangers_body_is_not_read(hooks: Hooks) -> None:
    hooks.start()
    with socket.create_connection(("127.0.0.1", HOOKS_PORT)) as sock:
        sock.settimeout(5)
        sock.sendall(b"POST /guess/hysteria HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        while sock.recv(4_096):
            pass  # and it ends there


def test_garbage_on_the_port_stops_nothing(hooks: Hooks) -> None:
    hooks.start()
    for junk in (
        b"\0" * 20_000,
        b"GET / HTTP/9\r\n\r\n",
        b"POST /" + TOKEN.encode() + b"/hysteria",
    ):
        with socket.create_connection(("127.0.0.1", HOOKS_PORT)) as sock:
            sock.sendall(junk)
    assert ok(hooks, "alices-secret") == ALICE
