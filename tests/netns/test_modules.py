"""The modules qos_user and qos_info against a node that limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from .harness import Client, Node, eventually, status
from .modules import run_module
from .senders import Pipe

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(node: Node) -> Run:
    """Runs a module on the node, whose policy has a plan."""
    node.write_policy("plans: {gold: {download: 9mbit}}\n")
    return partial(run_module, node)


def user(node: Node) -> int:
    """A user with a flow; returns the minor."""
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    return (node.mark(client) or 0) & 0xFFFF


def test_a_permanent_entry_is_in_force_within_a_second(node: Node, run: Run) -> None:
    node.start()
    minor = user(node)
    assert node.classes()[1][minor] == 3_000_000
    assert run("qos_user", name="alice@x", plan="gold")["changed"]
    eventually(lambda: node.classes()[1][minor] == 9_000_000)
    assert run("qos_user", name="alice@x", state="absent")["changed"]
    eventually(lambda: node.classes()[1][minor] == 3_000_000)


def test_a_temporary_one_is_ordered_once_and_ended(node: Node, run: Run) -> None:
    node.start()
    minor = user(node)
    limit = {"name": "alice@x", "state": "limit", "download": "1mbit", "for": "2h", "reason": "r"}
    assert run("qos_user", check=True, **limit)["changed"]
    assert node.classes()[1][minor] == 3_000_000
    node.make_table()
    first = run("qos_user", **limit)
    assert first["changed"] and first["until"] == pytest.approx(time.time() + 7_200, abs=10)
    assert node.classes()[1][minor] == 1_000_000
    assert not run("qos_user", **limit)["changed"]
    assert run("qos_user", **{**limit, "for": "4h"})["changed"]
    assert run("qos_user", name="alice@x", state="limit", blocked=True)["changed"]
    assert run("qos_user", name="alice@x", state="limit", cut=True)["changed"]
    assert not run("qos_user", name="alice@x", state="limit", cut=True)["changed"]
    assert run("qos_user", name="alice@x", state="limit", unlimited=True)["until"] is None
    assert run("qos_user", check=True, name="alice@x", state="reset")["changed"]
    assert run("qos_user", name="alice@x", state="reset")["changed"]
    assert node.classes()[1][minor] == 3_000_000
    assert not run("qos_user", name="alice@x", state="reset")["changed"]


def test_a_temporary_one_that_is_wrong_is_refused(node: Node, run: Run) -> None:
    node.start()
    user(node)
    for arguments, sentence in (
        ({"download": "5mbps"}, "bytes a second to tc"),
        ({"plan": "silver"}, "there is no plan 'silver'; there are: gold"),
        (
            {},
            "state limit needs one of: plan, upload, download, connections, devices, "
            "unlimited, blocked, cut",
        ),
        ({"cut": True, "plan": "gold"}, "cut: true stands alone"),
        ({"blocked": True, "plan": "gold"}, "state limit takes blocked: true alone"),
    ):
        for check in (True, False):
            result = run("qos_user", check=check, name="alice@x", state="limit", **arguments)
            assert result["failed"] and sentence in result["msg"]
    assert status(node)["overrides"] == []


def test_info_returns_limits_rates_and_counters(node: Node, run: Run) -> None:
    node.start()
    minor = user(node)
    run("qos_user", name="alice@x", state="limit", download="8mbit", reason="ticket")
    pipe, done = Pipe(), threading.Event()

    def download() -> None:
        while not done.is_set():
            pipe.send(minor, 10_000_000, within_s=0.1)

    thread = threading.Thread(target=download)
    thread.start()
    time.sleep(0.5)
    try:
        found = run("qos_info", check=True, interval=2)
    finally:
        done.set()
        thread.join()
    assert not found["changed"]
    alice = found["users"]["alice@x"]
    assert (alice["upload_bps"], alice["download_bps"], alice["flows"]) == (2_000_000, 8_000_000, 1)
    assert alice["down_bytes"] > 1_000_000
    assert 6_500_000 < alice["down_rate_bps"] < 9_500_000
    assert alice["download_share"] == pytest.approx(alice["down_rate_bps"] / 8e6, abs=0.01)
    assert alice["overrides"][0]["why"] == "ticket"
    assert alice["up_rate_bps"] == 0
    assert found["node"]["wan"] == "wan0"
    assert "verdict" not in found["node"]

    def says_the_same() -> bool:
        # What is found may change between two looks, so that one pair of them must agree.
        found, said = run("qos_info", interval=0), status(node)
        return all(found[key] == said[key] for key in ("verdict", "reason", "findings"))

    eventually(says_the_same)
    assert run("qos_info", names=["bob@x"], interval=0)["users"] == {}


def test_where_hashes_are_kept_modules_still_take_emails(node: Node, run: Run) -> None:
    with (node.directory / "settings.yml").open("a") as file:
        file.write("hash_emails: true\n")
    node.start()
    user(node)
    asked = {"name": "alice@x", "state": "limit", "download": "8mbit"}
    assert [run("qos_user", **asked)["changed"] for _again in range(2)] == [True, False]
    (name,) = (entry["email"] for entry in status(node)["users"])
    assert name.startswith("user-")
    assert list(run("qos_info", interval=0)["users"]) == [name]
    (found,) = run("qos_info", names=["alice@x"], interval=0)["users"].items()
    assert found[0] == "alice@x" and found[1]["download_bps"] == 8_000_000
    assert found[1]["overrides"][0]["entry"] == {"download": "8mbit"}
    assert run("qos_user", name="alice@x", state="reset")["changed"]
    assert status(node)["overrides"] == []
