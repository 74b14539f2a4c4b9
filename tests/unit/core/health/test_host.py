"""Doctor's rules for the host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vff_qos.core.health import host as host_rules
from vff_qos.core.health.findings import OK
from vff_qos.core.health.host import Canary, Host, LogFile
from vff_qos.core.settings import Settings

SETTINGS = Settings()


def kinds(host: Host, settings: Settings = SETTINGS) -> list[str]:
    return [f.kind for f in host_rules.examine(host, settings) if f.level != OK]


FLOWTABLE = {"flowtable": {"family": "inet", "table": "t", "name": "f"}}
CONNMARK = {"xt": {"type": "target", "name": "CONNMARK"}}
SETS = {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 7}}
READS = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}


def rule(*statements: dict[str, Any], table: str = "theirs") -> list[dict[str, Any]]:
    return [{"rule": {"family": "ip", "table": table, "chain": "c", "handle": 4,
                      "expr": [*statements, {"accept": None}]}}]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (Host(ruleset=rule(SETS)), ["mark_rule"]),
        (Host(ruleset=rule(CONNMARK)), ["mark_rule"]),
        (Host(ruleset=rule(READS)), []),
        (Host(ruleset=rule(SETS, table="vff_qos")), []),
        (Host(ruleset=[FLOWTABLE]), ["flowtable"]),
        (Host(ruleset=None, ruleset_problem="no nft"), []),
        (Host(logs=[LogFile("/x", "No such file or directory")]), ["log_file"]),
        (Host(logs=[LogFile("/x", "No such file", source="singbox_log")]), ["log_file"]),
        (Host(logs=[LogFile("/x", copytruncate="/etc/logrotate.d/xray")]), ["copytruncate"]),
        (Host(sysctls={"net.netfilter.nf_conntrack_events": "0"}), ["sysctl"]),
        (Host(sysctls={"net.netfilter.nf_conntrack_acct": "0"}), []),
        (Host(plan=["add qdisc"]), ["kernel_objects"]),
        (Host(plan_problem="no"), ["kernel_objects"]),
        (Host(filters=["ingress: bpf"]), ["foreign_filter"]),
        (Host(clock_synchronized=False), ["clock_free"]),
        (Host(wan="a", default_routes={"IPv4": ["a", "b"]}), ["default_routes"]),
        (Host(wan="a", default_routes={"IPv4": ["a", "a"], "IPv6": ["a"]}), []),
    ],
)  # fmt: skip
def test_each_trouble_of_the_host(host: Host, told: list[str]) -> None:
    assert kinds(host) == told


def test_default_routes_are_read_from_the_kernels_tables() -> None:
    ipv4 = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
        "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
    )
    zero = "0" * 32
    ipv6 = (
        f"{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 1 0 00450003 eth1\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n"
    )
    assert host_rules.parse_default_routes(ipv4, ipv6) == {"IPv4": ["eth0"], "IPv6": ["eth1"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/var/log/xray/*.log {\n  daily\n  copytruncate\n}\n", True),
        ("/var/log/xray/access.log /x {\n copytruncate\n}", True),
        ('"/var/log/xray/access.log" { copytruncate }', True),
        ("/var/log/xray/*.log {\n  create\n}\n", False),
        ("/var/log/other.log {\n  copytruncate\n}\n", False),
        ("copytruncate\n/var/log/xray/*.log {\n  daily\n}\n", True),
        ("copytruncate\n/var/log/xray/*.log {\n  nocopytruncate\n}\n", False),
        ("/var/log/xray/*.log {\n  # copytruncate\n}\n", False),
        ("", False),
    ],
)
def test_a_rotation_that_loses_lines(text: str, told: bool) -> None:
    assert host_rules.copytruncates(text, "/var/log/xray/access.log") is told


def test_findings_are_json() -> None:
    found = host_rules.examine(Host(plan=["x"], mtu=1500, wan="a", tcp_memory="t"), SETTINGS)
    assert json.dumps([vars(f) for f in found])


@pytest.mark.parametrize(
    ("canary", "words"),
    [
        (Canary(8_000_000, 7_600_000, 7_700_000), ""),
        (Canary(8_000_000, 8_500_000, 7_700_000), "does not hold for the upload of"),
        (Canary(8_000_000, 7_600_000, 9_000_000), "does not hold for the download of"),
        (Canary(8_000_000, 9_000_000, 9_000_000), "for the upload and the download of"),
        (Canary(8_000_000, 7_600_000, 100), "gets less than its limit: download"),
        (Canary(8_000_000, problem="the kernel lacks cls_fw"), "the kernel lacks cls_fw"),
    ],
)
def test_what_the_canary_says(canary: Canary, words: str) -> None:
    found = host_rules.examine(Host(ruleset=[], canary=canary), SETTINGS)
    (finding,) = [f for f in found if f.kind == "canary"]
    assert (finding.level == OK) is (not words)
    assert words in finding.sentence
