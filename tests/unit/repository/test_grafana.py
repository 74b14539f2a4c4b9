"""Alert rules and the dashboard speak of metrics and labels that there are, and rules fire."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from checkout import DOCS
from vff_qos.metrics.catalogue import NODE, USER

RULES = DOCS / "grafana" / "vff-qos.rules.yml"
RULES_TEST = DOCS / "grafana" / "vff-qos.rules.test.yml"
DASHBOARD = DOCS / "grafana" / "vff-qos.json"
#: Labels by metric; job and instance are the scrape's.
LABELS = {m.full_name: {"job", "instance", *m.labels} for m in NODE} | {
    m.full_name: {"job", "instance", "user", *m.labels} for m in USER
}


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked = [one["definition"] for one in board["templating"]["list"] if "definition" in one]
    assert shown and asked
    return [*shown, *asked, *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_what_there_is(expression: str) -> None:
    named = re.findall(r"(vff_qos_\w+)(?:\{([^}]*)\})?", expression)
    assert named
    for metric, selector in named:
        assert set(re.findall(r"(\w+)=~?\"", selector)) <= LABELS[metric]
    grouped = re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", expression)
    for label in ",".join(grouped).replace(" ", "").split(","):
        assert not label or any(label in LABELS[metric] for metric, _selector in named)


def test_promtool_has_nothing_to_say_of_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(RULES)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_rules_fire_when_they_should_and_no_sooner() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(RULES_TEST)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_is_tried_when_it_fires_and_when_not() -> None:
    tried: dict[str, set[bool]] = {}
    for one in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for case in one["alert_rule_test"]:
            tried.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in rules()}


def test_every_rule_is_explained() -> None:
    listed = re.findall(r"^\| `(VffQos\w+)` \|", (DOCS / "METRICS.md").read_text(), re.M)
    assert listed == [rule["alert"] for rule in rules()]


def lost(given: Any, kept: Any, at: str = "") -> list[str]:
    """What another has not kept of something."""
    if isinstance(given, dict) and isinstance(kept, dict):
        found = [f"{at}.{key}" for key in given if key not in kept]
        return found + [
            one
            for key in given.keys() & kept.keys()
            for one in lost(given[key], kept[key], f"{at}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [one for n, (a, b) in pairs for one in lost(a, b, f"{at}[{n}]")]
    return [] if given == kept else [at]


def test_grafanas_own_types_know_all_of_the_dashboard() -> None:
    """Read and written by the types that Grafana makes of its schemas: a misspelt key is lost."""
    register_default_plugins()
    board = json.loads(DASHBOARD.read_text())
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    # What Grafana adds when it exports a dashboard is not of the schema.
    ours = {key: value for key, value in board.items() if key not in ("__inputs", "__requires")}
    assert {re.sub(r"\d", "N", one) for one in lost(ours, kept)} == {
        ".templating.list[N].definition"
    }


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    board = json.loads(DASHBOARD.read_text())
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
