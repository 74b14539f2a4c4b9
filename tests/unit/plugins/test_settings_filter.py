"""Wrong settings are refused on the controller, with one sentence that names the variable."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

GOOD: dict[str, Any] = {"if_wan": "auto", "service_ports": [443], "gc_idle_sec": 14400}
POLICY: dict[str, Any] = {"default": {"upload": "20mbit", "download": "50mbit"}, "users": {}}


@pytest.fixture
def settings(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("filter/settings")


def test_good_settings_have_no_problems(settings: ModuleType) -> None:
    assert settings.settings_problems(GOOD, POLICY, "10min") == []


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
    (problem,) = settings.settings_problems({**GOOD, **change}, POLICY, "10min")
    assert problem.startswith(start)


def test_a_wrong_limit_is_named_by_user_and_key(settings: ModuleType) -> None:
    policy = {**POLICY, "users": {"alice@x.com": {"upload": "50mbps"}}}
    (problem,) = settings.settings_problems(GOOD, policy, "10min")
    assert problem.startswith("qos_users[alice@x.com.upload]: ")
    assert "bytes a second" in problem


def test_an_email_that_is_a_number_is_an_email(settings: ModuleType) -> None:
    policy = {**POLICY, "users": {12: {"unlimited": True}}}
    assert settings.settings_problems(GOOD, policy, "10min") == []


@pytest.mark.parametrize("interval", ["10min", "1h 30min", "90", "1h30min", "2 h"])
def test_times_are_written_as_systemd_writes_them(settings: ModuleType, interval: str) -> None:
    assert settings.settings_problems(GOOD, POLICY, interval) == []


@pytest.mark.parametrize("interval", ["", "often", "10min\nExecStart=x", "-5min"])
def test_what_is_no_time_is_refused(settings: ModuleType, interval: str) -> None:
    (problem,) = settings.settings_problems(GOOD, POLICY, interval)
    assert problem.startswith("qos_gc_interval: ")


def test_a_container_that_nothing_reads_is_refused_with_the_way_out(settings: ModuleType) -> None:
    (problem,) = settings.settings_problems({**GOOD, "container": "node"}, POLICY, "10min")
    assert problem.startswith("qos_container: ")
    assert "container" in problem and "journal" in problem


def test_a_misspelt_variable_is_refused_with_the_likely_name(settings: ModuleType) -> None:
    known = ["qos_upload_default", "qos_state"]
    assert settings.unknown_variables(["qos_state", "qos_uplod_default", "qos_zz"], known) == [
        "qos_uplod_default is not a variable of the role vff.qos.qos; "
        "did you mean qos_upload_default?",
        "qos_zz is not a variable of the role vff.qos.qos; see ansible-doc -t role vff.qos.qos",
    ]
