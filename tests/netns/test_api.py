"""What docs/API.md shows to programs is what the commands and modules really give."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from checkout import DOCS
from vff_qos.core.health.findings import EXIT_CODES

from .harness import WAN, Client, Node, eventually, is_found, look, run, status, user
from .modules import run_module
from .senders import send_through

TEXT = (DOCS / "API.md").read_text()
SECTIONS = [section.partition("\n") for section in TEXT.split("\n## ")]
EXAMPLES = {
    heading: json.loads(found[1])
    for heading, _, text in SECTIONS
    if (found := re.search(r"```json\n(.*?)```", text, re.S))
}


def output(node: Node, *words: str) -> Any:
    """What a command prints for programs, whatever its exit code."""
    done = subprocess.run(node.command(*words), capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def limit(node: Node) -> Any:
    node.write_policy("")  # the module wants one without a mistake
    order: dict[str, Any] = {"state": "limit", "download": "10mbit", "for": "2h"}
    return run_module(node, "qos_user", name="alice@x", **order)


def usage(node: Node) -> Any:
    (alice,) = output(node, "status", "--json")["users"]
    send_through(WAN, int(alice["class"].partition(":")[2], 16), 3)

    def booked() -> Any:
        node.run("gc")  # which books
        found = output(node, "usage", "--by", "day", "--json")
        return found["users"] and found

    return eventually(booked)


GIVES: dict[str, Callable[[Node], Any]] = {
    "`vff-qos status --json`": lambda node: output(node, "status", "--json"),
    "`vff-qos top --json`": lambda node: output(node, "top", "--json", "--interval", "0.2"),
    "`vff-qos explain EMAIL --json`": lambda node: output(node, "explain", "alice@x", "--json"),
    "`vff-qos explain IP --json`": lambda node: output(node, "explain", "127.0.0.1", "--json"),
    "`vff-qos usage --by day --json`": usage,
    "`vff-qos doctor --json`": lambda node: output(node, "doctor", "--json", "--no-canary"),
    "The module `vff.qos.qos_info`": lambda node: run_module(node, "qos_info", interval=0.2),
    "The module `vff.qos.qos_user`": limit,
}


def differences(shown: Any, real: Any, at: str = "") -> list[str]:
    """What is shown and not there, or of another type; ``null`` may stand for anything."""
    if shown is None or real is None:
        return []
    if isinstance(shown, dict) and isinstance(real, dict):
        # Users and orders by name, keys of the policy: of each the first.
        if at.endswith((".users", ".entry", ".gives")):
            shown, real = ({"*": next(iter(one.values()))} for one in (shown, real))
        found = [f"{at}.{key} is not there" for key in shown if key not in real]
        for key in shown.keys() & real.keys():
            found += differences(shown[key], real[key], f"{at}.{key}")
        return found
    if isinstance(shown, list) and isinstance(real, list):
        assert real or not shown, f"{at}: the test has none of these"
        return differences(shown[0], real[0], f"{at}[]") if shown else []
    kinds = [int if type(value) is float else type(value) for value in (shown, real)]
    return [] if kinds[0] is kinds[1] else [f"{at}: {kinds[1].__name__}, not {kinds[0].__name__}"]


def test_every_section_with_an_example_is_held() -> None:
    assert EXAMPLES.keys() == GIVES.keys()
    assert TEXT.count("```json") == len(GIVES)


@pytest.fixture
def told(node: Node) -> tuple[Node, list[Client]]:
    """A node with a user under an order, and a policy that is not in force."""
    policy = "plans: {pro: {upload: 5mbit, download: 20mbit}}\nusers:\n  alice@x: {plan: pro}\n"
    node.write_policy(policy)
    node.start()
    kept = [user(node, "alice@x")]
    node.run("limit", "alice@x", "--download", "10mbit", "--for", "2h", "--reason", "ticket 4711")
    node.write_policy(policy + "  bob@x: {upload: 5mbps}\n")
    eventually(lambda: is_found(node, "policy"), 12)
    return node, kept


@pytest.mark.parametrize("section", list(GIVES))
def test_the_example_is_what_is_given(section: str, told: tuple[Node, list[Client]]) -> None:
    assert differences(EXAMPLES[section], GIVES[section](told[0])) == []


def test_a_difference_would_be_found() -> None:
    assert differences({"a": 1}, {"b": 1}) == [".a is not there"]
    assert differences({"a": [{"b": "x"}]}, {"a": [{"b": 1}]}) == [".a[].b: int, not str"]
    assert differences({"a": 1.5, "b": None}, {"a": 2, "b": {}}) == []


def test_the_exit_codes(told: tuple[Node, list[Client]]) -> None:
    node, _kept = told
    rows = dict(re.findall(r"^\| (\d) \| `([A-Z]+)`", TEXT, re.M))
    assert {name: int(code) for code, name in rows.items()} == EXIT_CODES
    assert look(node)[0] == EXIT_CODES[status(node)["verdict"]] == 1
    assert json.loads(run(*node.command("top", "--json", "--interval", "0.2")))["verdict"]
    refused = subprocess.run(
        node.command("limit", "alice@x", "--download", "5mbps"), capture_output=True, check=False
    )
    assert refused.returncode == 2
