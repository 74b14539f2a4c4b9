"""The role's defaults, their documentation and the agent's own defaults say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.vff.qos.plugins.filter.settings import old_variables, unknown_variables

import made_docs
from checkout import ROLE, ROOT
from vff_qos.commands.disable import UNITS
from vff_qos.config import Paths
from vff_qos.core.policy.model import Policy
from vff_qos.core.settings import KEYS, LEAVES, REPORT_FORMATS, Settings, short_forms
from vff_qos.state_file import SCHEMA_VERSION


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


DEFAULTS: dict[str, Any] = load(ROLE / "defaults" / "main.yml")
OPTIONS: dict[str, Any] = load(ROLE / "meta" / "argument_specs.yml")["argument_specs"]["main"][
    "options"
]


def test_every_variable_is_documented_and_every_documented_variable_exists() -> None:
    assert sorted(DEFAULTS) == sorted(OPTIONS)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_the_documented_default_is_the_default(name: str) -> None:
    assert OPTIONS[name]["default"] == DEFAULTS[name]
    assert type(OPTIONS[name]["default"]) is type(DEFAULTS[name])


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_variable_says_what_it_is(name: str) -> None:
    assert OPTIONS[name]["type"]
    assert OPTIONS[name]["description"]


def test_the_role_offers_what_the_agent_knows() -> None:
    assert OPTIONS["qos_leaf"]["choices"] == list(LEAVES)
    assert OPTIONS["qos_identity_source"]["choices"] == list(short_forms())
    assert OPTIONS["qos_report_format"]["choices"] == list(REPORT_FORMATS)


def test_role_and_agent_have_the_same_defaults() -> None:
    ours, policy = Settings(), Policy()
    up_bps, down_bps = policy.default.upload_bps, policy.default.download_bps
    assert up_bps and down_bps
    assert DEFAULTS["qos_if_wan"] == ours.wan
    assert DEFAULTS["qos_if_ifb"] == ours.ifb
    assert int(DEFAULTS["qos_handle"], 16) == ours.major
    assert DEFAULTS["qos_vpn_port"] == ours.service_ports[0][0]
    assert DEFAULTS["qos_leaf"] == ours.leaf
    assert DEFAULTS["qos_take_foreign_root"] == ours.take_foreign_root
    assert DEFAULTS["qos_early_shaping"] == ours.early_shaping
    assert DEFAULTS["qos_flood_guard"] == ours.flood_guard
    assert DEFAULTS["qos_identity_source"] == ours.sources[0].type
    assert DEFAULTS["qos_xray_access_log_path"] == ours.sources[0].origin
    assert DEFAULTS["qos_usage_hourly_days"] == ours.usage_hourly_days
    assert DEFAULTS["qos_usage_daily_days"] == ours.usage_daily_days
    assert DEFAULTS["qos_report_url"] == ours.report_url
    assert DEFAULTS["qos_report_format"] == ours.report_format
    assert DEFAULTS["qos_metrics_users"] == ours.metrics_users
    assert DEFAULTS["qos_gc_idle_sec"] == ours.gc.idle_s
    assert DEFAULTS["qos_gc_min_age_sec"] == ours.gc.min_age_s
    assert DEFAULTS["qos_gc_check_conntrack"] == ours.gc.check_conntrack
    assert DEFAULTS["qos_gc_pool_min"] == ours.gc.pool_min
    assert DEFAULTS["qos_gc_pool_max"] == ours.gc.pool_max
    assert DEFAULTS["qos_upload_default"] == f"{up_bps // 10**6}mbit"
    assert DEFAULTS["qos_download_default"] == f"{down_bps // 10**6}mbit"
    assert DEFAULTS["qos_wan_ceil"] == f"{ours.node_ceil_bps // 10**9}gbit"


def test_a_key_of_the_settings_is_its_variable_without_qos() -> None:
    assert {f"qos_{key}" for key in KEYS} <= set(OPTIONS)
    text: str = load(ROLE / "vars" / "main.yml")["__qos_settings"]
    # With underscores: what counts in its place where the old role's variable is set.
    written = re.findall(r"^ *'(\w+)': (?:__)?(\w+)(?: \| (?:string|int|bool))?,$", text, re.M)
    assert sorted(key for key, _variable in written) == sorted(KEYS)
    assert text.count("\n") == len(written) + 1
    assert all(variable == f"qos_{key}" for key, variable in written)


#: Every variable of the role qos_per_user_xray that is none of ours, in any of its versions.
OLD_VARIABLES = """
qos_bin_dir qos_dry_run qos_enable_nftables_service qos_etc_dir qos_gc_dry_run qos_gc_enable
qos_gc_timer_accuracy_sec qos_gc_timer_calendar qos_gc_timer_interval_sec
qos_gc_timer_onboot_delay_sec qos_gc_timer_persistent qos_gc_timer_randomized_delay_sec
qos_gc_use_conntrack qos_htb_r2q qos_log_dir qos_nft_apply_script_path qos_nft_chain_output
qos_nft_chain_prerouting qos_nft_conf_path qos_nft_include_dir qos_nft_include_glob
qos_nft_include_insert_after_regex qos_nft_include_line qos_nft_manage qos_nft_remove_on_absent
qos_nft_snippet_path qos_nft_table_family qos_nft_table_name qos_nft_unit_after qos_nft_unit_enable
qos_nft_unit_name qos_nft_unit_path qos_nft_unit_start qos_nft_unit_wants qos_require_docker_cli
qos_state_dir qos_systemd_enable qos_tc_default_dl qos_tc_default_ul qos_tc_enable
qos_tc_rollback_on_absent qos_timer_onboot_delay_sec qos_timer_randomized_delay_sec
""".split()


@pytest.mark.parametrize("name", OLD_VARIABLES)
def test_each_variable_of_the_old_role_is_translated_or_said_to_be_without_effect(
    name: str,
) -> None:
    old = load(ROLE / "vars" / "main.yml")["__qos_old_variables"]
    assert unknown_variables([name], OPTIONS, old) == []
    (note,) = old_variables([name], old)
    assert note.startswith((f"{name} counts as qos_", f"{name} has no effect: "))
    assert name not in OPTIONS


def test_what_an_old_variable_counts_as_is_one_of_ours() -> None:
    old = load(ROLE / "vars" / "main.yml")["__qos_old_variables"]
    ours = [meaning["counts_as"] for meaning in old.values() if "counts_as" in meaning]
    assert ours
    assert {re.findall(r"qos_\w+", text)[0] for text in ours} <= set(OPTIONS)


def test_the_table_of_old_variables_is_what_make_docs_writes() -> None:
    assert made_docs.MIGRATION.read_text() == made_docs.migration()


def test_role_and_agent_name_the_same_units_and_places() -> None:
    written = load(ROLE / "vars" / "main.yml")
    assert list(UNITS) == ["vff-qos-webhook.socket", *written["__qos_own_units"]]
    paths = Paths()
    assert paths.settings == f"{written['__qos_etc']}/settings.yml"
    assert paths.policy == f"{written['__qos_etc']}/policy.yml"
    assert paths.policy_dir == f"{written['__qos_etc']}/policy.d"
    assert paths.disabled == f"{written['__qos_etc']}/disabled-by-hand"
    assert paths.state_dir == written["__qos_state_dir"]
    assert paths.kept == written["__qos_kept"]
    assert written["__qos_state_schema"] == SCHEMA_VERSION


def test_the_page_of_variables_is_what_make_docs_writes() -> None:
    """Every variable is there, since the specs and the defaults have the same (above)."""
    assert made_docs.VARIABLES.read_text() == made_docs.variables()
    listed = re.findall(r"^\| `(qos_\w+)` \|", made_docs.VARIABLES.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(OPTIONS)


def test_the_node_and_the_developer_have_the_same_libraries() -> None:
    node = re.findall(r"^([\w.-]+==[\w.]+) ", (ROLE / "files/requirements.txt").read_text(), re.M)
    tools = (ROOT / "tests/requirements.txt").read_text().splitlines()
    assert node
    assert set(node) <= set(tools)


def test_one_version_for_collection_and_agent() -> None:
    galaxy = load(ROOT / "galaxy.yml")["version"]
    project = (ROOT / "agent/pyproject.toml").read_text()
    assert f'version = "{galaxy}"' in project


def test_the_preflight_and_the_agent_ask_for_the_same_python() -> None:
    project = (ROOT / "agent/pyproject.toml").read_text()
    module = (ROOT / "plugins/modules/qos_preflight.py").read_text()
    floor = re.search(r"^PYTHON_FLOOR = \((\d+), (\d+)\)$", module, re.M)
    assert floor
    assert f'requires-python = ">={floor[1]}.{floor[2]}"' in project


@pytest.mark.parametrize("name", ["kernel/rtnetlink.py", "core/old_role.py"])
def test_what_the_agent_and_the_preflight_both_know_is_in_one_file(name: str) -> None:
    """A link, so that a checkout, an installed collection and a wheel all have the same."""
    link = ROOT / "agent/src/vff_qos" / name
    assert link.resolve() == ROOT / "plugins/module_utils" / link.name


def test_what_modprobe_says_does_not_decide_whether_a_unit_starts() -> None:
    """Where all is built in it finds nothing, and nothing is missing."""
    lines = [
        line
        for path in (ROLE / "templates").glob("*.j2")
        for line in path.read_text().splitlines()
        if "modprobe" in line and line.startswith("Exec")
    ]
    assert lines
    for line in lines:
        prefixes = line.partition("=")[2].partition("/")[0]
        assert set(prefixes) == {"-", "+"}  # ignore its end; as root
