"""What a plan may say about use, and what is wrong with what it says."""

from __future__ import annotations

import re

import pytest

from checkout import DOCS
from vff_qos.core.policy.model import NO_TERMS
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.policy.terms import BLOCKED, FairUseRule, Quota
from vff_qos.errors import ConfigError

from .examples import GB, terms

# -- the grammar ------------------------------------------------------------------------------


def test_rules_are_read_as_people_write_them() -> None:
    found = terms(
        "fair_use:\n"
        "- {more_than: 20GB, within: 24h, then: slow, for: 1h}\n"
        "- {more_than: 1.5 GB, within: 1h 30min, then: crawl, for: 2d, direction: upload}\n"
        "- {above: 95%, during: 15min, then: blocked, for: 90s}\n"
        "quota: {limit: 10GiB, per: day, reset: 4, then: blocked, direction: download}\n"
    )
    assert found.rules == (
        FairUseRule("volume", 20 * GB, 86_400, "both", "slow", 3_600),
        FairUseRule("volume", 1_500_000_000, 5_400, "upload", "crawl", 172_800),
        FairUseRule("rate", 95, 900, "upload", BLOCKED, 90),
        FairUseRule("rate", 95, 900, "download", BLOCKED, 90),
    )
    assert found.quota == Quota(10 << 30, "day", 4, BLOCKED, "download")
    assert [rule.text for rule in found.rules[:3]] == [
        "more than 20 GB within 1d",
        "more than 1.5 GB of upload within 1h 30min",
        "above 95% of the upload limit during 15min",
    ]
    assert found.quota.text == "quota of 10.7 GB of download per day"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fair_use: {}", "fair_use: must be a list"),
        ("fair_use: [{then: slow}]", "fair_use.0: needs either more_than and within"),
        ("fair_use: [{more_than: 1GB, during: 1h}]", "fair_use.0: needs either"),
        ("fair_use: [{more_than: 1GB, within: 1h, then: slow}]", "fair_use.0.for: is missing"),
        ("fair_use: [{more_than: 1GB, within: 1h, for: 1h}]", "fair_use.0.then: is missing"),
        ("fair_use: [{more_than: 20, within: 1h, then: slow, for: 1h}]", "more_than: 20 is not an"),
        ("fair_use: [{more_than: 20mbit, within: 1h, then: slow, for: 1h}]", "not an amount"),
        ("fair_use: [{more_than: 1kB, within: 1h, then: slow, for: 1h}]", "out of range"),
        ("fair_use: [{more_than: 1GB, within: 5s, then: slow, for: 1h}]", "allowed: 1min to 31d"),
        ("fair_use: [{more_than: 1GB, within: soon, then: slow, for: 1h}]", "is not a time"),
        ("fair_use: [{more_than: 1GB, within: 3mon, then: slow, for: 1h}]", "'3mon' is not a time"),
        ("fair_use: [{above: 0.95, during: 1h, then: slow, for: 1h}]", "not a share of the limit"),
        ("fair_use: [{above: 100%, during: 1h, then: slow, for: 1h}]", "allowed: 10% to 99%"),
        (
            "fair_use: [{above: 95%, during: 1h, then: fast, for: 1h}]",
            "then: 'fast' is no other plan",
        ),
        ("fair_use: [{above: 95%, for: 1h, during: 1h, then: slow, x: 1}]", "x: unknown key"),
        ("quota: {per: day, then: slow}", "quota.limit: is missing"),
        ("quota: {limit: 1GB, per: year, then: slow}", "quota.per: 'year' is not one of"),
        ("quota: {limit: 1GB, per: day, reset: 24, then: slow}", "reset: 24 is not an hour"),
        ("quota: {limit: 1GB, per: month, reset: 0, then: slow}", "reset: 0 is not a day"),
        ("quota: {limit: 1GB, then: slow, direction: down}", "direction: 'down' is not one of"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace(".", r"\.")):
        terms(text)


def test_two_rules_with_one_condition_are_refused() -> None:
    rule = "{more_than: 1GB, within: 1h, then: %s, for: 1h}"
    with pytest.raises(ConfigError, match="stands twice: more than 1 GB within 1h"):
        terms(f"fair_use: [{rule % 'slow'}, {rule % 'crawl'}]")


PLANS = b"""
default: {plan: basic}
plans:
  basic: {download: 20mbit, quota: {limit: 100GB, then: "64"}}
  gold: {download: 100mbit, fair_use: [{more_than: 20GB, within: 24h, then: 64, for: 1h}]}
  free: {download: 5mbit}
  64: {upload: 64kbit, download: 64kbit}
match:
  - {pattern: "*.gold", plan: gold}
users:
  free@x: {plan: free}
  fast@x: {download: 50mbit}
  boss@x: {unlimited: true}
"""


@pytest.mark.parametrize(
    ("email", "plan"),
    [
        ("nobody@x", "basic"),
        ("fast@x", "basic"),
        ("a.gold", "gold"),
        ("free@x", None),
        ("boss@x", None),
    ],
)
def test_the_terms_are_those_of_the_plan(email: str, plan: str | None) -> None:
    policy = parse_policy(PLANS, "policy.yml")
    assert policy.terms_of(email) is (policy.terms[plan] if plan else NO_TERMS)


def test_a_plan_does_not_lead_to_itself() -> None:
    with pytest.raises(ConfigError, match=r"policy.yml:1: plans.a.quota.then: 'a' is no other"):
        parse_policy(b"plans: {a: {quota: {limit: 1GB, then: a}}, b: {}}", "policy.yml")


def test_the_examples_of_the_manual_are_a_policy() -> None:
    text = (DOCS / "POLICY.md").read_text()
    (example,) = (
        block for block in re.findall("```yaml\n(.*?)```", text, re.DOTALL) if "fair_use" in block
    )
    policy = parse_policy(example.encode(), "POLICY.md")
    assert [rule.then for rule in policy.terms["basic"].rules] == ["slow"] * 3
    assert policy.terms["trial"].quota == Quota(GB, "day", 4, BLOCKED, "download")
