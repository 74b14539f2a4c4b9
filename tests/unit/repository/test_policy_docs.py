"""The examples of docs/POLICY.md are true."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import pytest
import yaml

from checkout import DOCS
from vff_qos.arguments import parser
from vff_qos.core.policy.model import Policy
from vff_qos.core.policy.parse import ENTRY_KEYS, parse_policy
from vff_qos.core.units import parse_rate

TEXT = (DOCS / "POLICY.md").read_text()
_EXAMPLE = re.compile(r"^```yaml\n(.*?)^```\n\n((?:^\|[^\n]*\n)+)", re.M | re.S)
_HEADER = ["email", "rule", "upload", "download", "weight"]
#: Variable of the role -> key of policy.yml, as roles/qos/vars/main.yml has them.
_ROLE = {"qos_plans": "plans", "qos_match": "match", "qos_users": "users"}


class Example(NamedTuple):
    policy: Policy
    rows: list[list[str]]


def _policy(text: str, first: str) -> Policy:
    if text.startswith("# policy.d/"):
        return parse_policy(first.encode(), "POLICY.md", [(text.encode(), "drop-in")])
    if "qos_" in text:
        variables = yaml.safe_load(text)
        data = {_ROLE[name]: value for name, value in variables.items() if name in _ROLE}
        data["default"] = {"plan": variables["qos_plan_default"]}
        text = json.dumps(data)
    return parse_policy(text.encode(), "POLICY.md")


def _examples() -> list[Example]:
    found = []
    first = ""
    for text, table in _EXAMPLE.findall(TEXT):
        first = first or text
        header, _line, *rows = [
            [cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.splitlines()
        ]
        assert header == _HEADER
        found.append(Example(_policy(text, first), rows))
    return found


def test_every_example_has_its_table() -> None:
    assert len(_examples()) == TEXT.count("```yaml") == 8


@pytest.mark.parametrize(
    ("policy", "row"), [(example.policy, row) for example in _examples() for row in example.rows]
)
def test_the_examples_are_true(policy: Policy, row: list[str]) -> None:
    email, rule, upload, download, weight = row
    limits = policy.limits(email)
    rates = [None if rate == "unlimited" else parse_rate(rate) for rate in (upload, download)]
    assert policy.rule(email).kind == rule
    assert [limits.upload_bps, limits.download_bps] == rates
    assert limits.weight == int(weight)


def test_the_commands_exist() -> None:
    commands = re.findall(r"^vff-qos (.*?)(?: +#.*)?$", TEXT, re.M)
    assert len(commands) == 13
    for command in commands:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        parser().parse_args(words)


def test_every_key_is_explained() -> None:
    assert all(re.search(rf"^\| .*`{key}", TEXT, re.M) for key in ENTRY_KEYS)
