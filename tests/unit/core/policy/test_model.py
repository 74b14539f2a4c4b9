"""Who gets what: precedence of policy.yml, its drop-ins and temporary overrides."""

from __future__ import annotations

from typing import Any

import pytest

from vff_qos.core.policy.model import (
    BLOCKED_BPS,
    DEFAULT_LIMITS,
    Limits,
    Policy,
    lowest_of,
)
from vff_qos.core.policy.parse import parse_layer, parse_policy

from .examples import POLICY

PRO = Limits(50_000_000, 100_000_000, 5_000_000, 4, 65_536, "cake")
BASIC = Limits(10_000_000, 20_000_000)
BLOCKED = Limits(BLOCKED_BPS, BLOCKED_BPS, blocked=True)


@pytest.mark.parametrize(
    ("email", "rule", "limits"),
    [
        ("a@x", "user", PRO._replace(upload_bps=5_000_000)),
        ("A@x", "default", BASIC),
        ("b@x", "user", Limits(None, None)),
        ("c@x", "user", BLOCKED._replace(leaf="cake")),
        ("d@x", "user", BLOCKED),
        ("e@x", "user", BASIC),
        ("f@x", "user", BASIC._replace(download_bps=100_000_000)),
        ("12", "user", BASIC._replace(upload_bps=7_000_000)),
        ("x.trial", "user", BASIC._replace(upload_bps=3_000_000)),
        ("y.trial", "pattern", BASIC._replace(download_bps=1_000_000)),
        ("12.trial", "pattern", BASIC._replace(download_bps=1_000_000)),
        ("12.y", "pattern", PRO),
        ("y.trial.old", "pattern", BLOCKED),
        ("y.trial\nold", "default", BASIC),
        ("", "default", BASIC),
    ],
)
def test_the_first_rule_that_knows_an_email_decides(email: str, rule: str, limits: Limits) -> None:
    policy = parse_policy(POLICY, "p")
    for _ in range(2):  # the second time from memory
        assert policy.limits(email) == limits
        assert (policy.rule(email).kind, policy.rule(email).limits) == (rule, limits)


def test_what_has_a_say_is_listed_weakest_first() -> None:
    policy = parse_policy(POLICY, "p")
    names = [name for name, _layer in policy.layers("a@x")]
    assert names == ["plan basic", "default", "plan pro", "user a@x"]
    names = [name for name, _layer in policy.layers("y.trial")]
    assert names == ["plan basic", "default", "plan basic", "pattern *.trial"]
    assert [name for name, _layer in policy.layers("z")] == ["plan basic", "default"]


def test_without_a_word_everybody_has_the_default() -> None:
    assert parse_policy(b"default: {}", "p") == Policy()
    assert Policy().limits("a") == DEFAULT_LIMITS
    policy = parse_policy(b"default: {upload: 1mbit}\nusers: {a: {download: 2mbit}}", "p")
    assert policy.limits("a") == Limits(1_000_000, 2_000_000)


def test_later_drop_ins_win_over_earlier_ones_and_over_the_file() -> None:
    policy = parse_policy(
        POLICY,
        "p",
        [
            (b"users: {a@x: {plan: basic}, n: {plan: pro}}", "10"),
            (b"users: {n: {upload: 1mbit}}", "20"),
            (b"users: {}", "30"),
        ],
    )
    assert policy.limits("a@x") == BASIC
    assert policy.limits("n") == BASIC._replace(upload_bps=1_000_000)
    assert policy.limits("b@x") == Limits(None, None)


def test_where_unknown_users_are_blocked_those_with_a_rule_are_not() -> None:
    policy = parse_policy(
        b"default: {upload: 3mbit, blocked: true}\nusers: {a: {download: 4mbit}}\n"
        b"match: [{pattern: 'b*', upload: 5mbit}]",
        "p",
    )
    assert policy.limits("stranger") == policy.default == BLOCKED
    assert policy.limits("a") == Limits(3_000_000, 4_000_000)
    assert policy.limits("b1") == Limits(5_000_000, 50_000_000)
    unlocked = policy.overlaid("stranger", parse_layer({"download": "1mbit"}, policy.plans))
    assert unlocked == Limits(3_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("email", "override", "limits"),
    [
        ("a@x", {"download": "1mbit"}, PRO._replace(upload_bps=5_000_000, download_bps=1_000_000)),
        ("a@x", {"plan": "basic"}, PRO._replace(upload_bps=10_000_000, download_bps=20_000_000)),
        ("a@x", {"unlimited": True}, PRO._replace(upload_bps=None, download_bps=None)),
        ("a@x", {"blocked": True}, BLOCKED._replace(leaf="cake")),
        ("a@x", {"blocked": "cut"}, BLOCKED._replace(leaf="cake", cut=True)),
        ("a@x", {"plan": "locked"}, BLOCKED._replace(leaf="cake")),
        ("c@x", {"download": "1mbit"}, PRO._replace(download_bps=1_000_000)),
        ("c@x", {"unlimited": True}, PRO._replace(upload_bps=None, download_bps=None)),
        ("d@x", {"download": "1mbit"}, BASIC._replace(download_bps=1_000_000)),
        ("y.trial", {"upload": "1mbit"}, Limits(1_000_000, 1_000_000)),
        ("nobody", {"upload": "1mbit"}, BASIC._replace(upload_bps=1_000_000)),
    ],
)
def test_an_override_stands_above_every_rule(
    email: str, override: dict[str, Any], limits: Limits
) -> None:
    policy = parse_policy(POLICY, "p")
    assert policy.overlaid(email, parse_layer(override, policy.plans)) == limits


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"plan": "gone"}, "plan: there is no plan 'gone'; there are: basic, pro, 100, locked"),
        ({"download": "fast"}, "download: 'fast' is not a rate; allowed"),
        ({"donwload": "1mbit"}, "donwload: unknown key; allowed: plan, upload"),
        ({"unlimited": True, "upload": "1mbit"}, "unlimited stands beside a rate"),
        ("slow", "'slow' is not a mapping"),
    ],
)
def test_a_wrong_override_is_refused(override: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layer(override, parse_policy(POLICY, "p").plans)


def test_the_lowest_is_what_everybody_has_at_least() -> None:
    policy = parse_policy(POLICY, "p")
    assert policy.lowest() == Limits(3_000_000, 1_000_000)
    # A plan that nobody has, and users who are blocked, throttle nobody.
    policy = parse_policy(b"plans: {slow: {upload: 1mbit}}\nusers: {a: {blocked: true}}", "p")
    assert policy.lowest() == DEFAULT_LIMITS
    assert parse_policy(b"default: {blocked: true}", "p").lowest() == BLOCKED


def test_the_lower_of_two_is_unlimited_only_if_both_are() -> None:
    assert lowest_of([Limits(None, 5), Limits(3, None, weight=2)]) == Limits(3, 5)
    assert lowest_of([Limits(None, None)]) == Limits(None, None)


def test_what_is_remembered_of_strangers_is_bounded() -> None:
    policy = parse_policy(POLICY, "p")
    for number in range(40_000):
        policy.limits(f"{number}.trial")
    assert len(policy._matched) <= 16_384
    assert policy.limits("0.trial").download_bps == 1_000_000
