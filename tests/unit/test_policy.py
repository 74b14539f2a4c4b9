"""Who gets what: grammar and precedence of policy.yml, its drop-ins and temporary overrides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.htb import Node, burst_bytes, guarantee_shift, leaf_target_us, user_class
from vff_qos.core.policy.model import (
    BLOCKED_BPS,
    DEFAULT_LIMITS,
    Limits,
    Policy,
    lowest_of,
)
from vff_qos.core.policy.parse import parse_layer, parse_policy
from vff_qos.errors import ConfigError

POLICY = b"""
default: {plan: basic}
plans:
  basic: {upload: 10mbit, download: 20mbit}
  pro: {upload: 50mbit, download: 100 Mbps, guaranteed: 5mbit, weight: 4, burst: 64kb, leaf: cake}
  100: {download: 100mbit}
  locked: {blocked: true}
match:
  - {pattern: "*.trial", plan: basic, download: 1mbit}
  - {pattern: "1[0-9].*", plan: pro}
  - {pattern: "*.trial.old", blocked: true}
users:
  a@x: {plan: pro, upload: 5mbit}
  b@x: {unlimited: true}
  c@x: {plan: pro, blocked: true}
  d@x: {plan: locked}
  e@x: {plan: locked, blocked: false}
  f@x: {plan: 100}
  12: {upload: 7mbit}
  x.trial: {upload: 3mbit}
"""
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"users:\n  a@x:\n    upload: 5 parsecs",
            "p:3: users.a@x.upload: '5 parsecs': unknown unit",
        ),
        (b"users:\n  a@x: {uplod: 5mbit}", "did you mean 'upload'"),
        (b"users:\n  a@x: {unlimited: true, upload: 1mbit}", "unlimited stands beside a rate"),
        (b"users:\n  a@x: 5mbit", "must be a mapping with plan, upload"),
        (b"users: [a]", "must be a mapping of emails"),
        (b'users: {"a\\nb": {}}', "printable"),
        (b"user: {}", "did you mean 'users'"),
        (b"users:\n  a: {}\n  b: {plan: pro}", "p:3: users.b.plan: there is no plan 'pro'; "),
        (b"plans: {basic: {}}\ndefault: {plan: basci}", "there are: basic"),
        (b"plans: {basic: {plan: basic}}", "p:1: plans.basic.plan: unknown key"),
        (b"plans: {a b: {}}", "the name of a plan is 1 to 64 letters"),
        (b"plans: {off: {}}", "p:1: plans.off: 'off' means true, false or nothing to YAML"),
        (b"plans: []", "must be a mapping of names"),
        (b"plans: {a: {weight: 33}}", "p:1: plans.a.weight: 33 is not a whole number from 1 to 32"),
        (b"plans: {a: {weight: true}}", "True is not a whole number"),
        (b"plans: {a: {burst: 64kbit}}", "plans.a.burst: '64kbit' is not a size; allowed: 2kb"),
        (b"plans: {a: {leaf: red}}", "plans.a.leaf: 'red' is not one of fq_codel, pfifo, cake"),
        (b"plans: {a: {blocked: 1}}", "plans.a.blocked: 1 is not true or false"),
        (b"match: {a: {}}", 'match: must be a list such as [{pattern: "*.trial", plan: trial}]'),
        (b"match:\n- {}", "p:2: match.0: needs a pattern"),
        (b"match:\n- {pattern: 12}", "p:2: match.0: needs a pattern in quotes"),
        (b"match:\n- {pattern: a}\n- {pattern: a}", "p:3: match.1.pattern: 'a' stands twice"),
        (b"match:\n- {patern: a}", "did you mean 'pattern'"),
        (b"match:\n- {pattern: ''}", "must be 1 to 320 bytes"),
    ],
)
def test_bad_policies_name_file_line_and_key(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_drop_in_holds_users_and_is_named() -> None:
    for text, message in (
        (b"default: {}", "d.yml:1: default: unknown key; allowed: users"),
        (b"users:\n  a: {plan: x}", "d.yml:2: users.a.plan: there is no plan 'x'"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_policy(POLICY, "p", [(text, "d.yml")])
        assert str(caught.value).startswith(message)


@given(
    ceil_bps=st.integers(10**7, 10**12),
    weights=st.lists(st.integers(1, 32), min_size=1, max_size=5),
    limit_bps=st.integers(10**6, 10**12),
)
def test_guarantees_of_10000_users_fit_into_the_node(
    ceil_bps: int, weights: list[int], limit_bps: int
) -> None:
    node = Node(ceil_bps, max(weights))
    classes = [user_class(limit_bps, weight, node=node) for weight in weights]
    assert sum(c.rate_bps for c in classes) * 10_000 // len(classes) <= ceil_bps // 2
    promised = [10**8 * weight for weight in weights]
    total = sum(promised) * 2_000
    node = node._replace(shift=guarantee_shift(total, ceil_bps))
    kept = [user_class(10**12, guaranteed_bps=bps, node=node).rate_bps for bps in promised]
    # The kernel's smallest rate, 200 bit/s, stands below.
    assert sum(kept) * 2_000 <= ceil_bps // 2 + 200 * 2_000 * len(kept)


def test_shares_follow_weights() -> None:
    for ceil_bps in (10**9, 10**8):
        node = Node(ceil_bps, max_weight=4)
        one, four = (user_class(5 * 10**7, weight, node=node) for weight in (1, 4))
        assert four.quantum_bytes == 4 * one.quantum_bytes
        assert four.rate_bps == 4 * one.rate_bps
        assert one.ceil_bps == four.ceil_bps == 5 * 10**7


def test_codel_waits_for_a_frame_and_for_the_turns_of_others() -> None:
    assert leaf_target_us(5 * 10**7) == 5_000
    assert leaf_target_us(10**6) == 24_224
    assert leaf_target_us(10**7, Node(10**9)) == 5_000
    assert leaf_target_us(10**7, Node(2 * 10**7)) == 38_758
    assert leaf_target_us(10**7, Node(10**5)) == 100_000


def test_bursts_follow_the_rate() -> None:
    rates = (10**6, 2 * 10**7, 10**8, 5 * 10**8, 10**9, 5 * 10**9)
    assert [burst_bytes(rate_bps) for rate_bps in rates] == [
        3 * 1_514, 25_000, 125_000, 262_144, 262_144, 1_250_000,
    ]  # fmt: skip


@given(
    limit_bps=st.integers(1_000, 10**12),
    weight=st.integers(1, 32),
    ceil_bps=st.integers(1_000, 10**12),
    guaranteed_bps=st.none() | st.integers(1_000, 10**12),
    shift=st.integers(0, 40),
)
def test_classes_stay_within_what_htb_accepts(
    limit_bps: int, weight: int, ceil_bps: int, guaranteed_bps: int | None, shift: int
) -> None:
    node = Node(ceil_bps, 32, shift)
    params = user_class(limit_bps, weight, guaranteed_bps=guaranteed_bps, node=node)
    assert 200 <= params.rate_bps <= params.ceil_bps == limit_bps
    assert 1_514 <= params.quantum_bytes <= 70_000
    assert params.cburst_bytes >= 1_514


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# all of it is a comment\n", b"null\n", b"---\n"])
def test_an_emptied_file_is_a_mistake(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^p: holds nothing, .*write 'default: \{\}'"):
        parse_policy(text, "p")
    with pytest.raises(ConfigError, match=r"^d\.yml: holds nothing, .*write 'users: \{\}'"):
        parse_policy(POLICY, "p", [(text, "d.yml")])
    assert parse_policy(b"{}", "p") == parse_policy(b"default: {}", "p") == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default: {guaranteed: 30mbit}", "p:1: default.guaranteed: 30mbit is above the upload"),
        ("plans: {a: {upload: 5mbit, guaranteed: 6mbit}}", "plans.a.guaranteed: 6mbit is above"),
        ("plans: {a: {guaranteed: 21mbit}}", "above the upload limit of 20mbit"),
        ("users: {a@x: {upload: 99mbit, guaranteed: 51mbit}}", "the download limit of 50mbit"),
        ("match: [{pattern: a, guaranteed: 51mbit}]", "match.0.guaranteed: 51mbit is above"),
    ],
)
def test_a_guarantee_above_the_limit_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text.encode(), "p")
    assert said in str(caught.value)


def test_a_limit_below_the_plans_guarantee_is_no_mistake() -> None:
    plans = b"plans: {a: {guaranteed: 5mbit}}\n"
    users = b"users: {a@x: {plan: a, upload: 1mbit}, b@x: {plan: a, unlimited: true}}\n"
    policy = parse_policy(plans + users, "p")
    assert policy.limits("a@x").guaranteed_bps == policy.limits("b@x").guaranteed_bps == 5 * 10**6


@pytest.mark.parametrize(
    ("glob", "said"),
    [
        ("[a", "has a '[' without its ']'"),
        ("*.[!", "has a '[' without its ']'"),
        ("[]", "has a '[' without its ']'"),
        ("[!]", "has a '[' without its ']'"),
        ("a[b]c[d", "has a '[' without its ']'"),
        ("[9-0].*", "has the range 9-0, which is empty"),
    ],
)
def test_a_pattern_that_fits_nobody_is_refused(glob: str, said: str) -> None:
    text = f'match: [{{pattern: "{glob}", upload: 1mbit}}]'
    with pytest.raises(ConfigError) as caught:
        parse_policy(text.encode(), "p")
    assert f"p:1: match.0.pattern: {glob!r} {said}" in str(caught.value)


@pytest.mark.parametrize("glob", ["[[]", "[]]", "[!]a]", "a]b", "[a-z][0-9]", "[-a]", "[a-]"])
def test_a_pattern_of_the_shell_is_taken(glob: str) -> None:
    parse_policy(f'match: [{{pattern: "{glob}", upload: 1mbit}}]'.encode(), "p")


def test_a_pattern_after_one_that_fits_everybody_never_counts() -> None:
    text = b'match:\n- {pattern: "*", upload: 1mbit}\n- {pattern: "*.trial", upload: 2mbit}\n'
    with pytest.raises(ConfigError, match=r"p:3: match\.1: never counts"):
        parse_policy(text, "p")
