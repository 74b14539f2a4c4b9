"""The role's settings on each release of ansible-core that is allowed, really run.

Before 2.19 a template yields text unless ``jinja2_native`` is set, and then text that looks like a
number becomes one; since then values keep their types. The role must write the same files on all.
The oldest release runs always, the others with VFF_QOS_PLATFORMS=1 (`make test-platforms`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_cores import OLDEST, RELEASES, bin_of, oldest_target
from checkout import ROLE, ROOT
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.settings import parse_settings

WANTED = list(RELEASES) if os.environ.get("VFF_QOS_PLATFORMS") else [OLDEST]

#: Everything that could change its type on the way: numbers as text, text as numbers, templates.
VARIABLES: dict[str, Any] = {
    "some_number": 900,
    "some_truth": True,
    "some_rate": "7mbit",
    "some_users": {"bob@example.com": {"unlimited": True}, "no": {"plan": "007"}},
    "qos_container": "12",
    "qos_identity_source": "container",
    "qos_handle": "5100",
    "qos_service_ports": [443, "20000-20100"],
    "qos_gc_idle_sec": "{{ some_number }}",
    "qos_gc_pool_min": "32",
    "qos_gc_pool_max": "64",
    "qos_gc_check_conntrack": "{{ not some_truth }}",
    "qos_early_shaping": "yes",
    "qos_hop": {"20000-50000": 20000},
    "qos_upload_default": "{{ some_rate }}",
    "qos_plans": {"007": {"download": "7mbit", "weight": 3}},
    "qos_match": [{"pattern": "*.trial", "blocked": True}],
    "qos_users": "{{ some_users }}",
}
SETTINGS: dict[str, Any] = {
    "if_wan": "auto",
    "if_ifb": "vffqos0",
    "handle": "5100",
    "trees": "1",
    "service_ports": [443, "20000-20100"],
    "free_text_ports": [],
    "hash_emails": False,
    "wan_ceil": "100gbit",
    "unclassified_upload": "100gbit",
    "unclassified_download": "100gbit",
    "leaf": "fq_codel",
    "take_foreign_root": False,
    "early_shaping": True,
    "flood_guard": True,
    "unknown_udp": "pass",
    "follow_quic": True,
    "hop": {"20000-50000": 20000},
    "same_names": False,
    "identity_source": "container",
    "xray_access_log_path": "/var/log/xray/access.log",
    "container": "12",
    "journal_unit": "",
    "webhook_listen": "unix:/run/vff-qos-webhook.sock",
    "webhook_group": "root",
    "webhook_token": "",
    "usage_hourly_days": 31,
    "usage_daily_days": 400,
    "report_url": "",
    "report_format": "json",
    "report_secret_file": "",
    "report_ca_file": "",
    "metrics_users": 20,
    "metrics_group": "prometheus",
    "web_bind": "unix:/run/vff-qos-web.sock",
    "web_hosts": [],
    "web_token_file": "",
    "gc_idle_sec": 900,
    "gc_min_age_sec": 600,
    "gc_check_conntrack": False,
    "gc_pool_min": 32,
    "gc_pool_max": 64,
}
POLICY: dict[str, Any] = {
    "default": {"upload": "7mbit", "download": "50mbit"},
    "plans": {"007": {"download": "7mbit", "weight": 3}},
    "match": [{"pattern": "*.trial", "blocked": True}],
    "users": VARIABLES["some_users"],
}
#: An inventory that was written for the role qos_per_user_xray, as the three releases must take it.
OLD_VARIABLES: dict[str, Any] = {
    "qos_vpn_port": "8443",
    "qos_container": "remnanode",
    "qos_xray_access_log_path": "/var/log/supervisor/xray.out.log",
    "qos_if_ifb": "ifb0",
    "qos_wan_ceil": "1gbit",
    "qos_tc_default_ul": "900mbit",
    "qos_tc_default_dl": "800mbit",
    "qos_gc_use_conntrack": "no",
    "qos_gc_enable": False,
    "qos_dry_run": "0",
    "qos_htb_r2q": 50,
    "qos_nft_unit_after": ["docker.service"],
    "qos_timer_onboot_delay_sec": 20,
}
OLD_SETTINGS: dict[str, Any] = {
    "service_ports": ["8443"],
    "identity_source": "container",
    "container": "remnanode",
    "xray_access_log_path": "/var/log/supervisor/xray.out.log",
    "if_ifb": "ifb0",
    "wan_ceil": "1gbit",
    "unclassified_upload": "900mbit",
    "unclassified_download": "800mbit",
    "gc_check_conntrack": False,
    "gc_idle_sec": 1_000_000_000,
}
#: What the play says of them.
OLD_NOTES = [
    "qos_dry_run has no effect: `make qos-check` shows what would change, and changes nothing",
    "qos_gc_enable counts as qos_gc_idle_sec: 1000000000 if it is false",
    "qos_nft_unit_after has no effect: there is one nft table, inet vff_qos, which bootstrap makes",
    "qos_tc_default_ul counts as qos_unclassified_upload",
    "qos_container without qos_identity_source counts as qos_identity_source: container",
]
#: YAML as an operator writes it -> what the refusal must hold.
REFUSED = {
    "qos_users: {5.100: {unlimited: true}}": "qos_users: a name is the number 5.1 to YAML",
    "qos_users: {007: {unlimited: true}}": "qos_users: a name is the number 7 to YAML",
    "qos_users: {no: {unlimited: true}}": "qos_users: a name is false to YAML",
    "qos_plans: {12:30: {upload: 1mbit}}": "qos_plans: a name is the number 750 to YAML",
    "qos_match: [{pattern: 0x1F}]": "qos_match[0]: the pattern is the number 31 to YAML",
    "qos_handle: 0x5100": "qos_handle is the number 20736 to YAML",
    "qos_handle: 'zz'": "qos_handle: 'zz' is not a hex number",
    "qos_upload_default: 50mbps": "qos_upload_default: ",
    "qos_uplod_default: 50mbit": "did you mean qos_upload_default?",
    "{qos_plans: {a: {}}, qos_plan_default: a, qos_upload_default: 7mbit}": (
        "qos_upload_default: 7mbit has no effect beside qos_plan_default: a"
    ),
    "qos_service_ports: [0]": "qos_service_ports[0]: ",
    "qos_gc_interval: often": "qos_gc_interval: 'often' is not a time",
    "{qos_tc_default_ul: 1gbit, qos_unclassified_upload: 5mbit}": (
        "qos_tc_default_ul: 1gbit and qos_unclassified_upload: 5mbit contradict each other"
    ),
    "{qos_gc_use_conntrack: true, qos_gc_check_conntrack: false}": "contradict each other",
    "qos_metrics_interval: often": "qos_metrics_interval: 'often' is not a time",
    "qos_metrics_users: -1": "metrics_users: -1 is not a whole number from 0 to 65000",
    "qos_report_interval: often": "qos_report_interval: 'often' is not a time",
    "qos_confirm_sec: 5": "qos_confirm_sec: 5 is neither 0 nor between 15 and 600 seconds",
    "qos_report_url: http://example.com/": "qos_report_url: must begin with https://",
    "qos_web_bind: 0.0.0.0:9470": "qos_web_token_file: is needed where web_bind is not",
}
TEMPLATES = sorted(path.name for path in (ROLE / "templates").glob("vff-qos-*.j2"))


#: What the preflight needs; in this machine it always finds something to refuse, be it this.
PREFLIGHT = {
    "wan": "no-such-device",
    "ifb": "vffqos0",
    "handle": "5100",
    "kernel_modules": ["sch_htb"],
    "python": "/usr/bin/python3",
    "access_logs": [],
    "wheel_dir": "/nonexistent",
    "user": "nobody",
    "hooks_user": "nobody",
    "disabled_file": "/nonexistent",
    "socket_unit": "/nonexistent",
    "metrics_unit": "/nonexistent",
    "hooks_unit": "/nonexistent",
    "page_unit": "/nonexistent",
    "state_file": "/nonexistent",
    "state_schema": 6,
    "kept": "/nonexistent",
}


def play(directory: Path, target: str) -> list[dict[str, Any]]:
    """Writes what the role writes, and collects what it refuses."""
    include = {"name": "vff.qos.qos", "tasks_from": "settings.yml"}
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_role": {**include, "public": True}, "vars": VARIABLES},
    ]
    content = f"{{{{ lookup('ansible.builtin.template', '{ROLE}/templates/settings.yml.j2') }}}}"
    copy = {"dest": str(directory / "old-settings.yml"), "content": content}
    tasks += [
        {"ansible.builtin.include_role": include, "vars": OLD_VARIABLES},
        {"ansible.builtin.copy": copy, "vars": OLD_VARIABLES},
    ]
    for name in ["settings.yml.j2", "policy.yml.j2", *TEMPLATES]:
        content = f"{{{{ lookup('ansible.builtin.template', '{ROLE}/templates/{name}') }}}}"
        copy = {"dest": str(directory / name.removesuffix(".j2")), "content": content}
        tasks.append({"ansible.builtin.copy": copy, "vars": VARIABLES})
    restart = {
        "__qos_node": {"unconfirmed": False},
        "__qos_venv": {"changed": False},
        "__qos_socket": {"changed": False},
    }
    facts = {
        "found": {
            "modules": "{{ __qos_kernel_modules }}",
            "restart": "{{ __qos_restart_needed }}",
            "units": "{{ __qos_units }}",
            "advice": "{{ __qos_webhook_advice }}",
        }
    }
    written = {"__qos_written": {"paths": ["/etc/vff-qos/policy.yml"]}}
    tasks.append(
        {"ansible.builtin.set_fact": facts, "vars": {**VARIABLES, **restart, **written}},
    )
    tasks.append(
        {
            "ansible.builtin.copy": {
                "dest": str(directory / "found.json"),
                "content": "{{ found | to_json }} ",
            }
        }
    )
    for number, text in enumerate(REFUSED):
        note = {
            "dest": str(directory / f"refused-{number}"),
            "content": "{{ ansible_failed_result.msg }}",
        }
        tasks.append(
            {
                "block": [{"ansible.builtin.include_role": include, "vars": yaml.safe_load(text)}],
                "rescue": [{"ansible.builtin.copy": note}],
            }
        )
    look = {
        "vff.qos.qos_preflight": PREFLIGHT,
        "vars": {"ansible_python_interpreter": target},
    }
    note = {"dest": str(directory / "preflight"), "content": "{{ ansible_failed_result.msg }}"}
    tasks.append({"block": [look], "rescue": [{"ansible.builtin.copy": note}]})
    # The way out of a node that the old role has: refused, before anything of it is deleted.
    for place in (directory, directory / "nothing"):
        look = {
            "ansible.builtin.include_role": {**include, "tasks_from": "old_role.yml"},
            "vars": {"__qos_etc": str(place), "qos_state": "absent"},
        }
        note = {"dest": f"{directory}/old-role", "content": "{{ ansible_failed_result.msg }}"}
        tasks.append({"block": [look], "rescue": [{"ansible.builtin.copy": note}]})
    user = {"vff.qos.qos_user": {"name": 5.1}}
    note = {"dest": str(directory / "user"), "content": "{{ ansible_failed_result.msg }}"}
    tasks.append({"block": [user], "rescue": [{"ansible.builtin.copy": note}]})
    return [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
@pytest.mark.parametrize("release", WANTED)
def test_the_role_writes_and_refuses_the_same_on_every_release(
    release: str, native: bool, tmp_path: Path
) -> None:
    directory = bin_of(release)
    if directory is None:
        pytest.skip(f"no Python here for ansible-core {release}")
    (tmp_path / "qos.env").touch()
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump(play(tmp_path, oldest_target(release)), sort_keys=False)
    )
    done = subprocess.run(
        [directory / "ansible-playbook", "play.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_JINJA2_NATIVE": str(native),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr

    settings = (tmp_path / "settings.yml").read_bytes()
    assert yaml.safe_load(settings) == SETTINGS
    assert parse_settings(settings, "settings.yml").gc.idle_s == 900
    old = (tmp_path / "old-settings.yml").read_bytes()
    assert OLD_SETTINGS.items() <= yaml.safe_load(old).items()
    assert parse_settings(old, "settings.yml").service_ports == ((8443, 8443),)
    for sentence in OLD_NOTES:
        assert done.stdout.count(sentence) == 1, done.stdout
    policy = (tmp_path / "policy.yml").read_bytes()
    assert yaml.safe_load(policy) == POLICY
    assert set(parse_policy(policy, "policy.yml").users) == {"bob@example.com", "no"}
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"ifb", "sch_htb", "sch_fq_codel"} <= set(found["modules"])
    assert found["restart"] in (False, "False")
    assert found["units"][0] == "vff-qos-bootstrap.service"
    rule = '{"type": "field", "network": "tcp,udp", "outboundTag": "(your default)", "webhook": '
    assert '"webhook": {"url": "/run/vff-qos-webhook.sock:/"};' in found["advice"]
    assert rule in found["advice"]
    for name in TEMPLATES:
        unit = (tmp_path / name.removesuffix(".j2")).read_text()
        assert re.search(r"^\[(Service|Timer|Socket)\]$", unit, re.MULTILINE)
        assert "{{" not in unit
    for number, (text, sentence) in enumerate(REFUSED.items()):
        note = tmp_path / f"refused-{number}"
        assert note.exists(), f"{text} was accepted"
        assert sentence in note.read_text()
    said = (tmp_path / "old-role").read_text()
    assert f"the role qos_per_user_xray is on this node ({tmp_path}/qos.env)" in said
    assert "and then with qos_state=absent again" in said
    said = (tmp_path / "preflight").read_text()
    assert "there is no interface no-such-device (qos_if_wan); there are " in said
    assert (tmp_path / "user").read_text().startswith("name is the number 5.1 to YAML")


def test_the_oldest_release_is_the_one_that_the_collection_says() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert runtime["requires_ansible"] == f">={OLDEST}.0"
    role = yaml.safe_load((ROLE / "meta" / "main.yml").read_text())
    assert role["galaxy_info"]["min_ansible_version"] == OLDEST
