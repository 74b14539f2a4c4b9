"""Doctor, and explain of addresses, on nodes with faults."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from vff_qos.kernel.packed.conntrack import prepare

from .harness import Client, Node, eventually, missing_filters, run, snapshot, user
from .healing import HealingNode, plan_without_filters

# They look at the processes of the machine.
pytestmark = pytest.mark.alone


def diagnose(node: Node) -> tuple[int, dict[str, list[dict[str, Any]]], str]:
    """Exit code, findings by kind, and what people see."""
    done = subprocess.run(
        node.command("doctor", "--json", "--no-canary"), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    kinds: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        kinds.setdefault(finding["kind"], []).append(finding)
    words = node.command("doctor", "--no-canary")
    text = subprocess.run(words, capture_output=True, text=True, check=False)
    assert text.returncode == done.returncode
    return done.returncode, kinds, text.stdout


def wrong(kinds: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Kinds of what is wrong, but for what only this host's clock is to blame for."""
    bad = {kind for kind, found in kinds.items() if any(f["level"] != "OK" for f in found)}
    return bad - {"clock_free"}


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    plan_without_filters(tmp_path, monkeypatch)
    made = HealingNode(tmp_path)
    yield made
    made.stop()


def test_a_whole_node_is_well(whole: HealingNode) -> None:
    code, kinds, text = diagnose(whole)
    assert wrong(kinds) <= {"sysctl"}, kinds
    assert code == (1 if wrong(kinds) or "DEGRADED" in text.splitlines()[0] else 0)
    assert f"ok: {whole.log}: root:root 0644, " in text
    assert "ok: qdiscs, filters and nft table are as the settings say" in text


def test_what_others_do_to_marks_and_routes_is_named(whole: HealingNode) -> None:
    run("nft", "-f", "-", stdin="""
        table inet theirs {
          chain c { type filter hook input priority 0; tcp dport 4430 ct mark set 0x17; }
        }
    """)  # fmt: skip
    run("ip", "route", "add", "default", "via", "10.8.0.2", "metric", "100")
    code, kinds, _text = diagnose(whole)
    assert code == 1
    assert {"mark_rule", "default_routes"} <= wrong(kinds)
    assert "a rule in inet theirs c (handle" in kinds["mark_rule"][0]["sentence"]
    assert "what leaves by spare0 is not limited" in kinds["default_routes"][0]["sentence"]
    run("nft", "delete", "table", "inet", "theirs")
    run("ip", "route", "del", "default", "via", "10.8.0.2")
    assert wrong(diagnose(whole)[1]) <= {"sysctl"}


def test_a_tree_that_is_not_whole_is_told_with_what_is_missing(whole: HealingNode) -> None:
    whole.stop()
    run("nft", "delete", "table", "inet", "vff_qos")
    code, kinds, text = diagnose(whole)
    assert code == 1
    (one,) = kinds["kernel_objects"]
    assert any("vff_qos" in line for line in one["evidence"]), one
    assert "  do: 'vff-qos bootstrap' brings it there" in text
    whole.run("bootstrap")
    whole.start()
    assert wrong(diagnose(whole)[1]) <= {"sysctl"}


def test_the_engines_own_configuration_is_read(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "log": {"access": "none"},
                "inbounds": [
                    {
                        "tag": "vless-in", "port": 8443, "protocol": "vless",
                        "settings": {"clients": [{"id": "x", "email": "alice@x"}, {"id": "y"}]},
                    },
                ],
            }
        )
    )  # fmt: skip
    engine = tmp_path / "xray"
    engine.write_text("#!/bin/sh\nread -r _\n")
    engine.chmod(0o755)
    child = subprocess.Popen(
        [str(engine), "run", "-c", "config.json"], stdin=subprocess.PIPE, cwd=tmp_path
    )
    try:
        eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "xray\n")
        node.start()
        _code, kinds, text = diagnose(node)
    finally:
        child.kill()
        child.wait()
    assert {"xray_no_log", "xray_no_email", "xray_port"} <= wrong(kinds)
    assert f'Xray (pid {child.pid}, {config}): "access" is "none"' in text
    assert "1 of 2 users have no email" in text
    assert "its port 8443 is none of service_ports" in text


#: Where filters are lacking: the sender's own word takes downloads into the class.
_BY_PRIORITY = """
import socket
accept = socket.socket.accept
def accept_into_class(self):
    connection, peer = accept(self)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x51000002)
    return connection, peer
socket.socket.accept = accept_into_class
"""


def canary(node: Node) -> dict[str, Any]:
    """What the canary found."""
    done = subprocess.run(
        node.command("doctor", "--json"), capture_output=True, text=True, check=False
    )
    (found,) = [f for f in json.loads(done.stdout)["findings"] if f["kind"] == "canary"]
    return dict(found)


def test_the_canary_proves_that_limits_hold_or_says_what_the_kernel_lacks(node: Node) -> None:
    before = snapshot()
    found = canary(node)
    assert snapshot() == before
    if missing_filters():
        assert found["level"] == "DEGRADED"
        assert "could not prove on this kernel that limits hold: " in found["sentence"]
        assert "the kernel lacks cls_fw" in found["sentence"]
    else:
        assert found["level"] == "OK", found


def test_the_canary_tells_the_direction_in_which_a_limit_does_not_hold(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not missing_filters():
        pytest.skip("limits hold here in both directions")
    plan_without_filters(tmp_path, monkeypatch)
    assert "for the upload and the download of" in canary(node)["sentence"]
    with (tmp_path / "sitecustomize.py").open("a") as file:
        file.write(_BY_PRIORITY)
    found = canary(node)
    assert "for the upload of a flow of our own" in found["sentence"], found
    rate = float(found["evidence"][1].split()[1])
    assert 7.0 < rate < 8.2, found


def explain(node: Node, who: str) -> str:
    return run(*node.command("explain", who))


def test_explain_says_who_comes_from_an_address_and_why_a_flow_is_nobodys(node: Node) -> None:
    node.start()
    alice, bob = user(node, "alice@x"), user(node, "bob@x")
    nobody = Client("127.0.0.1", 4430)
    said = explain(node, "127.0.0.1")
    assert said.startswith("127.0.0.1: alice@x, bob@x, ")
    assert f"  NOBODY: {nobody.flow}" in said and "no claim has named it" in said
    said = explain(node, f"127.0.0.1:{alice.port}")
    assert said.splitlines()[0] == f"127.0.0.1:{alice.port}: alice@x, 1 connections"
    assert not node.conntrack.set_marks([prepare(nobody.flow, 0x17)])
    said = explain(node, f"127.0.0.1:{nobody.port}")
    assert "bears the mark 0x17 of other software" in said
    assert "no connection from there" in explain(node, "198.51.100.7")
    # The log goes away, and with it the reason of what comes now.
    node.log.unlink()
    late = Client("127.0.0.1", 4430)
    eventually(
        lambda: "there is no such log" in explain(node, f"127.0.0.1:{late.port}"), 12
    )  # fmt: skip
    del bob


@pytest.mark.parametrize(
    "who",
    ["999.1.1.1", "10.0.0.1:99999", "10.0.0.1:", "10.0.0.0/8", "1.2.3.4.5:80", "2001:db8::1::2",
     "[::1", "[::1]:x"],
)  # fmt: skip
def test_explain_refuses_what_is_nearly_an_address(node: Node, who: str) -> None:
    done = subprocess.run(node.command("explain", who), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"vff-qos explain: {who!r} is no address, and no user has that name; say EMAIL, IP, "
        "IP:PORT or [IP]:PORT\n"
    )


def test_explain_takes_a_users_name_for_a_name_whatever_it_looks_like(node: Node) -> None:
    node.write_policy("users:\n  999.1.1.1: {upload: 3mbit}\n")
    assert "upload" in explain(node, "999.1.1.1")
    # Nobody has these, but engines may name somebody so.
    for email in ("5.100", "1.2.3", "17", "a:b", "fe:ed"):
        assert explain(node, email).startswith(f"{email}")
    node.start()
    somebody = user(node, "10.0.0.1")
    assert "10.0.0.1" in explain(node, "10.0.0.1").splitlines()[0]
    assert "decided by" in explain(node, "10.0.0.1")
    del somebody


def test_explain_of_a_user_has_their_live_and_their_restricted_flows(node: Node) -> None:
    node.start()
    alice = user(node, "alice@x")
    torn = Client("127.0.0.1", 4430)
    node.write(torn.line("alice@x"), torn.line("bob@x"))
    eventually(lambda: (node.mark(torn) or 0) & 0xFFFF != (node.mark(alice) or 0) & 0xFFFF)
    said = explain(node, "alice@x")
    assert f"  {alice.flow}" in said
    own = next(line for line in said.splitlines() if str(alice.flow) in line)
    assert re.search(r"the line of \d{4}/\d\d/\d\d [0-9:.]{15} names alice@x$", own)
    assert "1 more from the same addresses are restricted, each until a line that can be" in said
    lines = said.splitlines()
    why = lines[next(n for n, line in enumerate(lines) if str(torn.flow) in line) + 1]
    assert "two users are named for it: the line of" in why
    assert "names alice@x; the line of" in why and why.endswith("names bob@x")
    assert "now upload 0 Mbit/s, 0 ms in the queue, held by connections in doubt" in said
    eventually(lambda: "last named: " in explain(node, "alice@x"), 12)
    found = json.loads(run(*node.command("explain", "alice@x", "--json")))
    assert time.time() - 30 < found["named_s"] <= time.time()
    assert [flow["restricted"] for flow in found["flows"]] == [False, True]
    assert [word["email"] for word in found["flows"][1]["said"]] == ["alice@x", "bob@x"]
    assert found["holding"]["upload"]["kind"] == "restricted"


def why_of(node: Node, client: Client) -> str:
    """What is said of one flow."""
    return explain(node, f"127.0.0.1:{client.port}").splitlines()[-1].strip()


def test_a_torn_line_is_told_from_a_forged_one(node: Node) -> None:
    node.start()
    torn, amiss, tainted, nameless, untold = (Client("127.0.0.1", 4430) for _ in range(5))
    after_torn = Client("127.0.0.1", 4430)
    # A full disk has taken the end of a line, newline included; the next one follows at once.
    node.write(torn.line("alice@x")[:60], after_torn.line("bob@x"))
    eventually(lambda: node.mark(after_torn))
    assert "lacks its end, as a full disk leaves it" in why_of(node, torn)
    assert not why_of(node, after_torn).startswith("restricted")
    node.write(nameless.line("x").replace(b" email: x", b""))
    eventually(lambda: "names no user" in why_of(node, nameless))
    assert "no claim has named it" in why_of(node, untold)
    node.write(amiss.line("alice@x").replace(b"tcp:example.com:443", b"tcp:exam\x01ple.com:443"))
    eventually(lambda: node.mark(amiss))
    assert "does not parse to its end: somebody may have moved bytes there" in why_of(node, amiss)
    # Its text reaches the next line.
    node.write(tainted.line("new@x"))
    eventually(lambda: node.mark(tainted))
    said = why_of(node, tainted)
    assert said.startswith("restricted until a line that can be trusted names it")
    assert (
        f"names new@x within reach of text that a stranger wrote, from 127.0.0.1:{amiss.port}"
        in said
    )
