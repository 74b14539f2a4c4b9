"""Wrong settings are refused on the controller, with one sentence that names the variable."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import yaml

GOOD: dict[str, Any] = {"if_wan": "auto", "service_ports": [443], "gc_idle_sec": 14400}
POLICY: dict[str, Any] = {"default": {"upload": "20mbit", "download": "50mbit"}, "users": {}}


@pytest.fixture
def settings(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("filter/settings")


def test_good_settings_have_no_problems(settings: ModuleType) -> None:
    assert settings.settings_problems(GOOD, POLICY, {}, {"qos_gc_interval": "10min"}) == []


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"if_wan": "a name that is too long"}, "qos_if_wan: "),
        ({"handle": "zz"}, "qos_handle: 'zz' is not a hex number"),
        ({"service_ports": [0]}, "qos_service_ports[0]: "),
        ({"unclassified_upload": "1x"}, "qos_unclassified_upload: "),
        ({"gc_pool_max": -1}, "qos_gc_pool_max: "),
    ],
)
def test_a_wrong_setting_is_named_by_its_variable(
    settings: ModuleType, change: dict[str, Any], start: str
) -> None:
    (problem,) = settings.settings_problems(
        {**GOOD, **change}, POLICY, {}, {"qos_gc_interval": "10min"}
    )
    assert problem.startswith(start)


def test_a_wrong_limit_is_named_by_user_and_key(settings: ModuleType) -> None:
    policy = {**POLICY, "users": {"alice@x.com": {"upload": "50mbps"}}}
    (problem,) = settings.settings_problems(GOOD, policy, {}, {"qos_gc_interval": "10min"})
    assert problem.startswith("qos_users[alice@x.com.upload]: ")
    assert "bytes a second" in problem


NOT_TEXT = ["5.100", "007", "0x1F", "12:30", "1_000", "12", "no", "On", "2024-01-01", "~", "1e+3"]


@pytest.mark.parametrize("spelt", [*NOT_TEXT, "1.", ".5", "0b11", "0o17", "-1", ".inf", "TRUE"])
@pytest.mark.parametrize(
    ("shape", "where"),
    [
        ("qos_users: {%s: {unlimited: true}}", "qos_users: a name is "),
        ("qos_users: {a@x: {plan: %s}}", "qos_users[a@x]: the plan is "),
        ("qos_plans: {%s: {upload: 1mbit}}", "qos_plans: a name is "),
        ("qos_match: [{pattern: '*'}, {pattern: %s}]", "qos_match[1]: the pattern is "),
        ("qos_match: [{pattern: '*', plan: %s}]", "qos_match[0]: the plan is "),
        ("qos_plan_default: %s", "qos_plan_default is "),
        ("qos_handle: %s", "qos_handle is "),
        ("qos_if_wan: %s", "qos_if_wan is "),
        ("qos_container: %s", "qos_container is "),
        ("qos_webhook_token: %s", "qos_webhook_token is "),
    ],
)
def test_a_name_that_is_no_text_to_yaml_is_refused_and_in_quotes_it_is_not(
    settings: ModuleType, spelt: str, shape: str, where: str
) -> None:
    """Whatever YAML would make of it: the name in the file is the one that counts."""
    unquoted = yaml.safe_load(shape % spelt)
    if yaml.safe_load(spelt) == spelt:
        assert settings.unquoted_names(unquoted) == []
    else:
        (problem,) = settings.unquoted_names(unquoted)
        assert problem.startswith(where)
        assert "put it in quotes, exactly as it is spelt" in problem
    assert settings.unquoted_names(yaml.safe_load(shape % f'"{spelt}"')) == []


def test_what_is_no_mapping_is_left_to_the_agents_own_refusal(settings: ModuleType) -> None:
    wrong = {"qos_users": ["a"], "qos_plans": "gold", "qos_match": {"a": 1}}
    assert settings.unquoted_names(wrong) == []


@pytest.mark.parametrize("interval", ["10min", "1h 30min", "90", "1h30min", "2 h"])
def test_times_are_written_as_systemd_writes_them(settings: ModuleType, interval: str) -> None:
    assert settings.settings_problems(GOOD, POLICY, {}, {"qos_report_interval": interval}) == []


@pytest.mark.parametrize("interval", ["", "often", "10min\nExecStart=x", "-5min"])
def test_what_is_no_time_is_refused(settings: ModuleType, interval: str) -> None:
    (problem,) = settings.settings_problems(GOOD, POLICY, {}, {"qos_report_interval": interval})
    assert problem.startswith("qos_report_interval: ")


def test_a_container_that_nothing_reads_is_refused_with_the_way_out(settings: ModuleType) -> None:
    (problem,) = settings.settings_problems(
        {**GOOD, "container": "node"}, POLICY, {}, {"qos_gc_interval": "10min"}
    )
    assert problem.startswith("qos_container: ")
    assert "container" in problem and "journal" in problem


def test_a_misspelt_variable_is_refused_with_the_likely_name(settings: ModuleType) -> None:
    known = ["qos_upload_default", "qos_state"]
    assert settings.unknown_variables(["qos_state", "qos_uplod_default", "qos_zz"], known) == [
        "qos_uplod_default is not a variable of the role vff.qos.qos; "
        "did you mean qos_upload_default?",
        "qos_zz is not a variable of the role vff.qos.qos; see ansible-doc -t role vff.qos.qos",
    ]


OLD = {
    "qos_tc_default_ul": {"counts_as": "qos_unclassified_upload"},
    "qos_tc_*": {"because": "trees are always made"},
}


def test_variables_of_the_old_role_are_known_and_what_became_of_them_is_said(
    settings: ModuleType,
) -> None:
    names = ["qos_tc_enable", "qos_state", "qos_tc_default_ul", "qos_tcenable", "qos_tc_enable"]
    (problem,) = settings.unknown_variables(names, ["qos_state"], OLD)
    assert problem.startswith("qos_tcenable is not a variable of the role")
    assert settings.old_variables(names, OLD) == [
        "qos_tc_default_ul counts as qos_unclassified_upload",
        "qos_tc_enable has no effect: trees are always made",
    ]


@pytest.mark.parametrize(
    ("old", "ours", "wrong"),
    [
        ("", "5mbit", False),
        ("1gbit", "100gbit", False),  # nobody has set ours
        ("5mbit", "5mbit", False),
        ("1gbit", "5mbit", True),
    ],
)
def test_an_old_name_and_ours_must_not_contradict_each_other(
    settings: ModuleType, old: str, ours: str, wrong: bool
) -> None:
    found = settings.contradictions([["qos_old", old, "qos_new", ours, "100gbit"]])
    assert bool(found) == wrong
    if wrong:
        assert found[0].startswith("qos_old: 1gbit and qos_new: 5mbit contradict each other")


LIMITS = {"qos_upload_default": "20mbit", "qos_download_default": "50mbit"}


def test_default_limits_beside_a_default_plan_are_refused(settings: ModuleType) -> None:
    changed = {**LIMITS, "qos_download_default": "30mbit"}
    assert settings.overruled(changed, "", LIMITS) == []
    assert settings.overruled(LIMITS, "basic", LIMITS) == []
    (problem,) = settings.overruled(changed, "qos_plan_default: basic", LIMITS)
    assert problem.startswith("qos_download_default: 30mbit has no effect beside")


SERVICES = {
    "web": {"ports": [8000], "protocol": "tcp", "plan": "pro"},
    "game": {"ports": ["9000-9010"]},
}
NETWORKS = {"office": {"prefixes": ["203.0.113.0/24"], "upload": "5mbit"}}


def test_a_service_says_where_it_is_and_what_it_may_use(settings: ModuleType) -> None:
    assert settings.static_places(SERVICES) == {
        "web": {"ports": [8000], "protocol": "tcp"},
        "game": {"ports": ["9000-9010"]},
    }
    users = {"alice@x": {}, "network:office": {"download": "1mbit"}}
    assert settings.static_limits(users, SERVICES, NETWORKS) == {
        "alice@x": {},
        "service:web": {"plan": "pro"},
        "network:office": {"download": "1mbit"},
    }


@pytest.mark.parametrize(
    ("services", "networks", "problem"),
    [
        (
            {"a": {"ports": [443]}}, {},
            "qos_services[a]: service 'a' and service_ports both have tcp port 443",
        ),
        ({"a": [443]}, {}, "qos_services[a]: must be a mapping with ports, protocol, address"),
        ({"a": {"port": 5}}, {}, "qos_services[a.port]: unknown key"),
        ({}, {"n": {"prefixes": ["10.0.0.0/8"], "plan": "none"}}, "qos_networks[n.plan]: "),
        ([1], {}, "qos_services: must be a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_service_is_named_by_the_roles_variable(
    settings: ModuleType, services: Any, networks: Any, problem: str
) -> None:
    policy = {**POLICY, "users": settings.static_limits({}, services, networks)}
    places = {
        "services": settings.static_places(services),
        "networks": settings.static_places(networks),
    }
    found = settings.settings_problems(GOOD, policy, places, {"qos_gc_interval": "10min"})
    assert found and found[0].startswith(problem), found


def test_people_are_refused_with_both_names(settings: ModuleType) -> None:
    def problems(people: object, users: object = None) -> list[str]:
        identities = {
            "services": {"t": {"ports": [7000]}}, "networks": {}, "people": people,
        }  # fmt: skip
        policy = {**POLICY, "users": users or {}}
        found = settings.settings_problems(GOOD, policy, identities, {})
        assert isinstance(found, list)
        return found

    assert problems({"alice": ["a@x", "service:t"]}, {"alice": {"upload": "1mbit"}}) == []
    assert problems({"alice": ["a@x"], "bob": ["a@x"]}) == [
        "qos_people[bob.0]: 'a@x' is an identity of both 'alice' and 'bob'"
    ]
    assert problems({"alice": ["hysteria:a"]})[0].startswith(
        "qos_people[alice.0]: 'hysteria:a': no source is called 'hysteria'"
    )
    # An entry of the policy that nobody would have.
    assert problems({"alice": ["a@x", "service:t"]}, {"a@x": {}, "service:t": {}}) == [
        "qos_users[a@x]: 'a@x' is an identity of 'alice' (qos_people); write qos_users[alice]",
        "qos_services[t]: 'service:t' is an identity of 'alice' (qos_people); write "
        "qos_users[alice]",
    ]
    # With a mistake in the settings nobody knows which sources there are.
    found = settings.settings_problems(
        {**GOOD, "handle": "zz"}, POLICY, {"people": {"alice": ["hysteria:a"]}}, {}
    )
    assert len(found) == 1 and found[0].startswith("qos_handle: ")


def test_names_of_people_are_quoted(settings: ModuleType) -> None:
    data = yaml.safe_load("qos_people: {12: [a@x], bob: [b@x, 5.100]}")
    first, second = settings.unquoted_names(data)
    assert first.startswith("qos_people: a name is ")
    assert second.startswith("qos_people[bob]: an identity is ")


HOOKS = {"listen": "127.0.0.1:8014", "token": "0123456789abcdef", "users_file": "/x"}
FLOWS = {"type": "flows", "listen": "unix:/run/x", "group": "vff-qos-hooks"}


def test_good_hooks_have_no_problems(settings: ModuleType) -> None:
    assert settings.hooks_problems(HOOKS, {"alice": "s3cret"}, FLOWS) == []


@pytest.mark.parametrize(
    ("hooks", "users", "flows", "start"),
    [
        ({"token": "x"}, {}, FLOWS, "qos_hooks_token: the value is not 16 to 256"),
        ({"auth_url": "http://x/"}, {}, FLOWS, "qos_hooks_auth_url: must begin with https://"),
        ({}, {"alice": "sha256$1"}, FLOWS, "qos_hooks_users[alice]: its hash is none of"),
        ({}, {}, {}, "qos_hooks_enable needs a source of the type flows in qos_sources"),
        ({}, {}, {"listen": "unix:/run/x"}, "qos_hooks_enable needs a group other than root"),
    ],
)
def test_wrong_hooks_are_named_by_their_variable(
    settings: ModuleType,
    hooks: dict[str, Any],
    users: dict[str, Any],
    flows: dict[str, Any],
    start: str,
) -> None:
    (problem,) = settings.hooks_problems({**HOOKS, **hooks}, users, flows)
    assert problem.startswith(start)


def test_a_secret_that_is_no_text_is_never_shown(settings: ModuleType) -> None:
    problems = settings.unquoted_names({"qos_hooks_users": {"alice": 12345, 7: "x"}})
    assert problems[0] == "qos_hooks_users[alice]: the secret is no text; put it in quotes"
    assert problems[1].startswith("qos_hooks_users: a name is the number 7")


@pytest.mark.parametrize(
    ("url", "is_so"),
    [
        ("", True),
        ("http://127.0.0.1:9/auth", True),
        ("http://[::1]/auth", True),
        ("https://localhost/auth", True),
        # They only begin so, and the sandbox must let the hooks out.
        ("https://localhost.example.com/auth", False),
        ("https://127.0.0.1.example.com/auth", False),
    ],
)
def test_a_panel_on_the_node_itself_is_known(settings: ModuleType, url: str, is_so: bool) -> None:
    assert settings.leads_to_itself(url) is is_so
