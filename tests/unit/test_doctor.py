"""Doctor's rules: the engine's configuration, and the host."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vff_qos.core.health import host as host_rules
from vff_qos.core.health import xray
from vff_qos.core.health.findings import OK
from vff_qos.core.health.host import Host, LogFile
from vff_qos.core.settings import Settings

SETTINGS = Settings(
    service_ports=((443, 443), (1_000, 2_000)), access_log="/var/log/xray/access.log"
)
GOOD: dict[str, Any] = {
    "log": {"access": "/var/log/xray/access.log", "error": "/var/log/xray/error.log"},
    "inbounds": [
        {
            "tag": "vless-in", "port": 443, "protocol": "vless",
            "settings": {"clients": [{"id": "x", "email": "alice@x"}]},
        },
        {"tag": "api", "listen": "127.0.0.1", "port": 62_789, "protocol": "tunnel"},
    ],
}  # fmt: skip


def wrong(config: dict[str, Any], settings: Settings = SETTINGS) -> list[str]:
    engine = xray.read_engine(7, [("/c.json", config)])
    found = list(xray.examine([engine], settings))
    assert all(f.remedy and "/c.json" in f.sentence for f in found if f.level != OK)
    return [f.kind for f in found if f.level != OK]


def inbound(**more: Any) -> dict[str, Any]:
    return {**GOOD, "inbounds": [{**GOOD["inbounds"][0], **more}]}


def log(**more: Any) -> dict[str, Any]:
    return {**GOOD, "log": {**GOOD["log"], **more}}


def test_a_good_configuration_is_well() -> None:
    assert wrong(GOOD) == []
    assert wrong({**GOOD, "log": {**GOOD["log"], "loglevel": "none", "error": ""}}) == []


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (log(access="none"), "xray_no_log"),
        (log(access="/other.log"), "xray_log_path"),
        (log(access="", error="/e"), "xray_log_path"),
        (log(maskAddress="half"), "xray_masked"),
        (log(error="/var/log/xray/access.log"), "xray_mixed"),
        (inbound(settings={"clients": [{"id": "x"}]}), "xray_no_email"),
        (inbound(port=8443), "xray_port"),
        (inbound(port="1500-2500"), "xray_port"),
        (
            inbound(protocol="shadowsocks", settings={
                "method": "2022-blake3-aes-128-gcm", "clients": [{"email": "a", "password": "p"}],
            }),
            "xray_forgeable",
        ),
        (inbound(protocol="socks", settings={}), "xray_forgeable"),
        (inbound(streamSettings={"sockopt": {"acceptProxyProtocol": True}}), "xray_proxy_protocol"),
        (inbound(streamSettings={"tcpSettings": {"acceptProxyProtocol": True}}),
         "xray_proxy_protocol"),
        (inbound(streamSettings={"sockopt": {"trustedXForwardedFor": ["CF-Connecting-IP"]}}),
         "xray_forwarded"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(config: dict[str, Any], kind: str) -> None:
    assert wrong(config) == [kind]


@pytest.mark.parametrize(
    "config",
    [
        inbound(port="1000-1500,443"),
        inbound(port="env:PORT"),
        # Only this host comes there: a front hands the connections over.
        inbound(listen="127.0.0.1", port=8443, streamSettings={
            "sockopt": {"acceptProxyProtocol": True}}),
        inbound(listen="/run/x.sock", port=0),
        inbound(protocol="shadowsocks", settings={
            "method": "aes-256-gcm", "password": "p", "email": "a"}),
    ],
)  # fmt: skip
def test_what_is_right_is_not_told(config: dict[str, Any]) -> None:
    assert wrong(config) == []


def test_a_webhook_makes_text_harmless_and_must_be_there() -> None:
    settings = replace(SETTINGS, source="webhook", webhook_listen="unix:/run/x")
    rules = {"routing": {"rules": [{"network": "tcp,udp", "webhook": {"url": "http://x"}}]}}
    socks = inbound(protocol="socks", settings={})
    assert wrong({**socks, **rules, "log": {"access": "none"}}, settings) == []
    assert wrong(socks, settings) == ["xray_webhook"]
    ports = replace(SETTINGS, free_text_ports=((443, 443),))
    assert wrong(socks, ports) == []


def test_xrays_json_has_comments_and_trailing_commas() -> None:
    text = """{ // one
      "log": {"access": "/a//b#c", /* two
      lines */ "error": "x, }",},
      # three
      "inbounds": [1, 2,],
    }"""
    assert xray.parse_config(text) == {
        "log": {"access": "/a//b#c", "error": "x, }"}, "inbounds": [1, 2],
    }  # fmt: skip
    for bad in ("", "[]", "{", "nonsense"):
        with pytest.raises(ValueError):
            xray.parse_config(bad)


@pytest.mark.parametrize("part", ["log", "inbounds", "routing"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [None], [{}], [[]]])
def test_no_shape_of_a_configuration_breaks_it(part: str, value: object) -> None:
    wrong({**GOOD, part: value})


def test_later_files_add_inbounds_and_replace_parts_of_the_log() -> None:
    engine = xray.read_engine(
        1, [("a", GOOD), ("b", {**inbound(port=1_000), "log": {"access": "/z"}})]
    )
    assert engine.log["access"] == "/z" and engine.log["error"] == "/var/log/xray/error.log"
    assert len(engine.inbounds) == 3 and engine.files == ("a", "b")


# -- the host -------------------------------------------------------------------------------------


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
        (Host(log=LogFile("/x", "No such file or directory")), ["log_file"]),
        (Host(log=LogFile("/x", copytruncate="/etc/logrotate.d/xray")), ["copytruncate"]),
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
