"""Doctor's rules for the engine's own configuration."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from vff_qos.core.health import xray
from vff_qos.core.health.findings import OK
from vff_qos.core.settings import Settings, parse_settings

SETTINGS = Settings(service_ports=((443, 443), (1_000, 2_000)))


def reading(sources: str) -> Settings:
    """The same with other sources, a list in YAML."""
    found = parse_settings(f"sources: {sources}".encode(), "s").sources
    return replace(SETTINGS, sources=found)


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
        (inbound(listen="127.0.0.1", port=8443), "xray_front"),
        (inbound(listen="@abstract", port=0), "xray_front"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(config: dict[str, Any], kind: str) -> None:
    assert wrong(config) == [kind]


@pytest.mark.parametrize(
    "config",
    [log(access="/other.log"), log(access="", error="/e"), inbound(protocol="socks", settings={})],
)
def test_what_to_do_about_a_source_is_said_for_both_forms_of_its_settings(
    config: dict[str, Any],
) -> None:
    # A node has the short form of one source, or the list; either refuses the other's words.
    (finding,) = xray.examine([xray.read_engine(7, [("/c.json", config)])], SETTINGS)
    assert "xray_access_log_path" in finding.remedy or "identity_source" in finding.remedy
    assert "under sources" in finding.remedy


@pytest.mark.parametrize(
    "config",
    [
        inbound(port="1000-1500,443"),
        inbound(port="env:PORT"),
        # Only this host comes there: a front hands the connections over.
        inbound(listen="127.0.0.1", port=8443, streamSettings={
            "sockopt": {"acceptProxyProtocol": True}}),
        inbound(listen="/run/x.sock", port=0, streamSettings={
            "tcpSettings": {"acceptProxyProtocol": True}}),
        inbound(protocol="shadowsocks", settings={
            "method": "aes-256-gcm", "password": "p", "email": "a"}),
    ],
)  # fmt: skip
def test_what_is_right_is_not_told(config: dict[str, Any]) -> None:
    assert wrong(config) == []


def test_a_webhook_makes_text_harmless_and_must_be_there() -> None:
    settings = reading("[{type: webhook, listen: 'unix:/run/x'}]")
    rules = {"routing": {"rules": [{"network": "tcp,udp", "webhook": {"url": "/run/x:/"}}]}}
    socks = inbound(protocol="socks", settings={})
    assert wrong({**socks, **rules, "log": {"access": "none"}}, settings) == []
    assert wrong(socks, settings) == ["xray_webhook"]
    ports = replace(SETTINGS, free_text_ports=((443, 443),))
    assert wrong(socks, ports) == []


UNIX = reading("[{type: webhook, listen: 'unix:/run/x'}]")
PORT = reading("[{type: webhook, listen: '127.0.0.1:8011', token: 0123456789abcdef}]")
BEARER = {"Authorization": "Bearer 0123456789abcdef"}


def rules(*hooks: dict[str, Any] | None) -> dict[str, Any]:
    """A rule for each, with that webhook."""
    found = [{"network": "tcp,udp"} | ({} if hook is None else {"webhook": hook}) for hook in hooks]
    return {**GOOD, "routing": {"rules": found}}


@pytest.mark.parametrize(
    ("config", "settings", "kinds"),
    [
        (rules({"url": "/run/x:/"}), UNIX, []),
        (rules(None, {"url": "/run/x:/a"}, {"url": "/run/x"}), UNIX, []),
        (rules(), UNIX, ["xray_webhook"]),
        (rules({}), UNIX, ["xray_webhook"]),
        (rules({"url": "/run/xy:/"}), UNIX, ["xray_webhook"]),
        (rules({"url": "http://127.0.0.1:8011/"}), UNIX, ["xray_webhook"]),
        (rules({"url": "/run/x:/"}, None), UNIX, ["xray_webhook_last"]),
        (rules({"url": "/run/x:/"}, {"url": "/run/y:/"}), UNIX, ["xray_webhook_last"]),
        (rules({"url": "/run/x:/", "deduplication": 60}), UNIX, ["xray_webhook_drops"]),
        (rules({"url": "http://127.0.0.1:8011/", "headers": BEARER}), PORT, []),
        (rules({"url": "http://localhost:8011/", "headers": BEARER}), PORT, []),
        (rules({"url": "http://127.0.0.1:8011/"}), PORT, ["xray_webhook_token"]),
        (
            rules({"url": "http://127.0.0.1:8011/", "headers": {"Authorization": "Bearer x"}}),
            PORT,
            ["xray_webhook_token"],
        ),
        (rules({"url": "http://127.0.0.1:80111/", "headers": BEARER}), PORT, ["xray_webhook"]),
        (rules({"url": "/run/x:/"}), PORT, ["xray_webhook"]),
    ],
)
def test_the_rule_that_is_missing_is_named(
    config: dict[str, Any], settings: Settings, kinds: list[str]
) -> None:
    assert wrong(config, settings) == kinds
    told = str(list(xray.examine([xray.read_engine(7, [("/c.json", config)])], settings)))
    token = settings.sources[0].options["token"]
    assert token == "" or token not in told


def remedy(config: dict[str, Any], **reach: Any) -> str:
    engine = replace(
        xray.read_engine(7, [("/c.json", config)]), reaches={"/run/x": xray.Reach(**reach)}
    )
    found = [f for f in xray.examine([engine], UNIX) if f.kind == "xray_webhook_reach"]
    return found[0].remedy if found else ""


def test_a_socket_that_is_out_of_reach_is_told_with_what_to_change() -> None:
    good = rules({"url": "/run/x:/"})
    who = {"user": "nobody", "groups": ("nogroup", "www"), "group": "root"}
    assert remedy(good, error=0, **who) == ""
    said = remedy(good, error=errno.EACCES, **who)
    assert said.startswith(
        "set qos_webhook_group to nogroup and run the role, or add nobody to the"
    )
    said = remedy(good, error=errno.ENOENT, own_mounts=True, **who)
    assert said == "mount the socket into its container (/run/x:/run/x), and restart it"
    said = remedy(good, error=errno.ECONNREFUSED, own_mounts=True, **who)
    assert said.startswith("restart its container")
    for mounts in (False, True):
        nothing = {**who, "group": ""}
        said = remedy(good, error=errno.ENOENT, own_mounts=mounts, **nothing)
        assert said == "'systemctl restart vff-qos-webhook.socket vff-qos-follow'"
    # Also where its files cannot be read.
    engine = xray.Engine(
        7, problem="no file", reaches={"/run/x": xray.Reach(errno.EACCES, "a", ("b",), "c")}
    )
    assert [f.kind for f in xray.examine([engine], UNIX)] == ["xray", "xray_webhook_reach"]


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
