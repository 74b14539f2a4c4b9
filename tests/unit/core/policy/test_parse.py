"""The grammar of policy.yml: one sentence for what may not be written."""

from __future__ import annotations

import pytest

from vff_qos.core.policy.model import (
    Policy,
)
from vff_qos.core.policy.parse import parse_policy
from vff_qos.errors import ConfigError

from .examples import POLICY


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
        (b"plans: {a: {connections: 0}}", "connections: 0 is not a whole number from 1 to 65536"),
        (b"users: {a: {connections: many}}", "p:1: users.a.connections: 'many' is not a whole"),
        (b"plans: {a: {over_connections: end}}", "'end' is not one of evict, refuse"),
        (
            b"plans: {a: {devices: 65}}",
            "p:1: plans.a.devices: 65 is not a whole number from 1 to 64",
        ),
        (b"plans: {a: {over: evict}}", "plans.a.over: 'evict' is not one of restrict, refuse"),
        (b"plans: {a: {grace: 2d}}", "plans.a.grace: '2d' is out of range; allowed: 10s to 1d"),
        (b"plans: {a: {grace: soon}}", "plans.a.grace: 'soon'"),
        (b"plans: {a: {burst: 64kbit}}", "plans.a.burst: '64kbit' is not a size; allowed: 2kb"),
        (b"plans: {a: {leaf: red}}", "plans.a.leaf: 'red' is not one of fq_codel, pfifo, cake"),
        (b"plans: {a: {blocked: 1}}", "plans.a.blocked: 1 is not true, false or cut"),
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
