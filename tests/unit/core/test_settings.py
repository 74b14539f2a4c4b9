"""Settings: what is allowed, and one clear line for what is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from vff_qos.core.settings import (
    Hop,
    merge_ranges,
    name_prefix,
    parse_settings,
    salvage_settings,
)
from vff_qos.errors import ConfigError


def test_settings_have_defaults_for_everything() -> None:
    assert parse_settings(b"", "s") == parse_settings(b"if_wan: auto\n", "s")


def test_all_settings_are_read() -> None:
    settings = parse_settings(
        b"""if_wan: eth0
if_ifb: up0
handle: "42"
service_ports: [443, "20000-20100", 8443]
wan_ceil: 10gbit
unclassified_download: 1gbit
leaf: cake
take_foreign_root: true
identity_source: file
xray_access_log_path: /a
gc_idle_sec: 5
gc_min_age_sec: 6
gc_check_conntrack: false
gc_pool_min: 3
gc_pool_max: 7
""",
        "s",
    )
    assert (settings.wan, settings.ifb, settings.major) == ("eth0", "up0", 0x42)
    assert settings.service_ports == ((443, 443), (8443, 8443), (20000, 20100))
    assert settings.unclassified_upload_bps == 10**10
    assert settings.unclassified_download_bps == 10**9
    assert (settings.gc.idle_s, settings.gc.pool_min, settings.gc.pool_max) == (5, 3, 7)
    assert parse_settings(b"service_ports: all", "s").service_ports == ()
    assert parse_settings(b"gc_pool_max: 64", "s").gc.pool_min == 64


@pytest.mark.parametrize(
    "url",
    ["https://h/", "https://h", "https://h:8443/a?t=1", "https://[2001:db8::1]/u",
     "http://127.0.0.1:8/u", "http://[::1]/u", "http://localhost/"],
)  # fmt: skip
def test_usage_may_be_reported_to(url: str) -> None:
    assert parse_settings(f"report_url: '{url}'".encode(), "s").report_url == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"if_wan: eth0\nlief: cake", "s:2: lief: unknown key; did you mean 'leaf'"),
        (b"leaf: red", "s:1: leaf: 'red' is not one of fq_codel, pfifo, cake"),
        (b"\n\ngc_idle_sec: soon", "s:3: gc_idle_sec: 'soon' is not a whole number"),
        (b"gc_pool_min: -1", "s:1: gc_pool_min: -1 is not a whole number from 0 to 65000"),
        (b"service_ports: [443, 99999]", "s:1: service_ports.1: 99999 is not a port"),
        (b"service_ports: [20-10]", "is not a port"),
        (b"service_ports: []", "must be 'all' or a list"),
        (b"handle: ffff", "s:1: handle: 'ffff' is not a hex number from 10 to 7fff"),
        (b"if_wan: a/b", "is not an interface name"),
        (b"xray_access_log_path: access.log", "is not an absolute path"),
        (
            b"report_url: http://h.example/u",
            "s:1: report_url: must begin with https://; http:// is",
        ),
        (b"report_url: 'https://u:geheim@h/'", "s:1: report_url: the value is not a URL such as"),
        (b"report_url: 'https://h:70000/'", "s:1: report_url: 70000 is not a port (1 to 65535)"),
        (b"report_url: 'https://h/a#b'", "s:1: report_url: the value is not a URL such as"),
        (b"report_secret_file: secret", "report_secret_file: 'secret' is not an absolute path"),
        (b"report_format: xml", "'xml' is not one of json, traffic-url, traffic-url-global"),
        (b"usage_hourly_days: 401", "usage_hourly_days: 401 is not a whole number from 1 to 400"),
        (b"wan_ceil: quick", "s:1: wan_ceil: 'quick' is not a rate; allowed"),
        (b"take_foreign_root: perhaps", "is not true or false"),
        (b"leaf: cake\nleaf: cake", "s:2: leaf: stands twice"),
        (b"- a\n- b", "must be a mapping"),
        (b"a: [", "not valid YAML"),
        (b"leaf:\n " + b"[" * 100 + b"]" * 100, "s:2: is nested too deeply"),
        # Newer versions of PyYAML refuse this by themselves.
        (b"leaf:\n " + b"[" * 3_000 + b"]" * 3_000, "nest"),
        (b"a: \0", "not valid YAML"),
        (b"\xff\xfe\xfd", "not valid YAML"),
        (b"if_wan: !!python/object:os.system x", "not valid YAML"),
        (b"{a: b}: c", "a key must be a plain word"),
        (b"if_wan: a\n---\nif_wan: b", "s:2: holds more than one document"),
        (b"if_wan: a\nif_ifb: *b", "s:2: if_ifb: there is no anchor 'b' before this"),
        (b"service_ports: &a [*a]", "service_ports.0: there is no anchor 'a' before this"),
        (b"gc_idle_sec: &g 5\nleaf: *g", "s:2: leaf: 5 is not one of"),
    ],
)
def test_bad_settings_name_file_line_key_and_what_is_allowed(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "s")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_source_in_the_short_form_and_several_in_a_list() -> None:
    short = parse_settings(b"identity_source: journal\njournal_unit: xray.service", "s")
    (one,) = short.sources
    assert (one.type, one.name, one.ports, one.trust) == ("journal", "journal", (), "text")
    assert one.options == {"journal_unit": "xray.service", "container": ""}
    assert parse_settings(b"sources: []", "s").sources == parse_settings(b"", "s").sources
    several = parse_settings(
        b"service_ports: ['443-500', 8443]\nsources: [{type: file}, {type: file, name: b, "
        b"path: /b, ports: ['450-460', 8443]}, {type: webhook, listen: 'unix:/run/x', group: x}]",
        "s",
    )
    assert [(s.name, s.origin, s.ports, s.trust) for s in several.sources] == [
        ("file", "/var/log/xray/access.log", (), "text"),
        ("b", "/b", ((450, 460), (8443, 8443)), "text"),
        ("webhook", "the webhook at unix:/run/x", (), "told"),
    ]
    assert several.origin == "/var/log/xray/access.log, /b, the webhook at unix:/run/x"
    assert several.reads_text
    assert [name_prefix(several, one) for one in several.sources] == ["", "b:", "webhook:"]
    same = replace(several, same_names=True)
    assert [name_prefix(same, one) for one in same.sources] == ["", "", ""]


def test_sing_boxs_log_may_be_in_four_places() -> None:
    entries = (
        "{path: /a}", "{name: b, path: /a, container: c}", "{name: c, container: c}",
        "{name: d, journal_unit: s.service}",
    )  # fmt: skip
    text = "sources: [" + ", ".join(e.replace("{", "{type: singbox_log, ") for e in entries) + "]"
    settings = parse_settings(text.encode(), "s")
    assert [(source.origin, source.trust) for source in settings.sources] == [
        ("/a", "text"),
        ("/a in container c", "text"),
        ("the journal of container c", "text"),
        ("the journal of s.service", "text"),
    ]
    assert settings.reads_text


TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity_source: mail", "'mail' is not one of container, file, journal, webhook"),
        ("identity_source: container", "s: container: is needed by a source in a container"),
        ("identity_source: journal", "s: journal_unit: a source in the journal needs either"),
        ("identity_source: webhook", "s: webhook_listen: is needed: 'unix:/run"),
        ("identity_source: webhook\nwebhook_listen: 127.0.0.1:9", "s: webhook_token: is needed"),
        (
            "identity_source: webhook\nwebhook_listen: '@a:/b'",
            "s:2: webhook_listen: '@a:/b' is not",
        ),
        (
            "identity_source: webhook\nwebhook_listen: 10.0.0.1:9",
            "webhook_listen: '10.0.0.1:9' is ",
        ),
        ("identity_source: file\ncontainer: x", "s:2: container: is read by the sources container"),
        (
            "sources: [{type: file}]\nidentity_source: file",
            "s:1: sources: stands beside identity_source, the short form of one source; leave one",
        ),
        (
            f"sources: [{{type: file}}]\nwebhook_token: {TOKEN}",
            "sources: stands beside webhook_token, the short form",
        ),
        ("sources: file", "s:1: sources: must be a list of 1 to 16 sources, each with its type"),
        ("sources: [file]", "s:1: sources.0: its type the source is not one of"),
        ("sources: [{name: a}]", "sources.0: its type '' is not one of container, file,"),
        ("sources: [{type: fil}]", "sources.0: its type 'fil' is not one of container, file,"),
        ("sources: [{type: file, pth: /a}]", "sources.0.pth: unknown key; did you mean 'path'?"),
        ("sources: [{type: file, listen: /a}]", "sources.0.listen: unknown key;"),
        ("sources: [{type: file, path: a}]", "sources.0.path: 'a' is not an absolute path"),
        ("sources: [{type: file, name: service}]", "sources.0.name: 'service' is not a name"),
        ("sources: [{type: file, name: 'a:b'}]", "sources.0.name: 'a:b' is not a name"),
        ("sources: [{type: file, ports: [80]}]", "ports: are not all among service_ports"),
        ("sources: [{type: file, ports: all}]", "ports: must be a list of ports and ranges"),
        (
            "sources:\n- {type: file}\n- {type: file, path: /b}",
            "s:3: sources.1: sources 1 and 2 of the list are both called 'file'; give one a name",
        ),
        (
            "sources:\n- {type: file}\n- {type: file, name: b}",
            "s:3: sources.1: sources 1 and 2 of the list are both /var/log/xray/access.log",
        ),
        (
            "sources: [{type: webhook, listen: 'unix:/x', token: short-secret}]",
            "sources.0.token: the value is not 16 to 256 letters",
        ),
        ("identity_source: singbox", "'singbox' is not one of container, file, journal, webhook"),
        ("sources: [{type: singbox}]", "sources.0.address: is needed: where sing-box's service"),
        (
            "sources: [{type: singbox, address: '10.0.0.1:9091', secret_file: /s}]",
            "sources.0.address: '10.0.0.1:9091' is not an address of this host and a port",
        ),
        (
            "sources: [{type: singbox, address: '127.0.0.300:9091', secret_file: /s}]",
            "sources.0.address: '127.0.0.300:9091' is not an address of this host and a port",
        ),
        (
            "sources: [{type: singbox, address: '[::1]:65536', secret_file: /s}]",
            "sources.0.address: 65536 is not a port (1 to 65535)",
        ),
        ("sources: [{type: singbox_log}]", "sources.0.path: is needed, or container, or both, or"),
        (
            "sources: [{type: singbox_log, path: /a, journal_unit: a.service}]",
            "sources.0.journal_unit: says where the log is, and so do path and container",
        ),
        (
            "sources: [{type: singbox, address: '127.0.0.1:9091'}]",
            "sources.0.secret_file: is needed: a file with the secret of sing-box's service 'api'",
        ),
        (
            "sources: [{type: singbox, address: '127.0.0.1:9091', secret_file: here}]",
            "sources.0.secret_file: 'here' is not an absolute path",
        ),
    ],
)
def test_wrong_sources_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text.encode(), "s")
    assert message in str(caught.value)
    assert "short-secret" not in str(caught.value) and TOKEN not in str(caught.value)
    # Who lifts limits is not held up by it.
    assert salvage_settings(text.encode()) == parse_settings(b"", "s")


def test_anchors_stand_for_their_value() -> None:
    text = b"wan_ceil: &rate 1gbit\nunclassified_upload: *rate\nunclassified_download: !!str 5mbit"
    settings = parse_settings(text, "s")
    assert settings.unclassified_upload_bps == 10**9
    assert settings.unclassified_download_bps == 5 * 10**6


def test_port_ranges_never_overlap() -> None:
    assert merge_ranges([(5, 9), (1, 3), (4, 4), (20, 30), (25, 26)]) == ((1, 9), (20, 30))


@pytest.mark.parametrize(
    "text",
    [
        b"if_wan: eth7\nhandle: '4711'\nif_ifb: up0\nleef: cake\nservice_ports: [443]\n",
        b"if_wan: eth7\nhandle: '4711'\nleaf: cake: pfifo\nif_ifb: up0\n",
        b"if_wan: eth7\n\tleaf: cake\nhandle: 4711\nif_ifb: up0\n",
        b"{if_wan: eth7, handle: '4711', if_ifb: up0, gc_idle_sec: soon}",
        b"service_ports:\n- 443\n - 444\nif_wan: eth7\nhandle: '4711'\nif_ifb: up0\n",
        b"wan_ceil: quick\nif_wan: eth7\nhandle: '4711'\nif_ifb: up0\nif_ifb: up0\nif_wan: '*'\0",
    ],
)
def test_what_lifts_limits_finds_the_names_of_our_objects_in_a_file_with_mistakes(
    text: bytes,
) -> None:
    with pytest.raises(ConfigError):
        parse_settings(text, "s")
    found = salvage_settings(text)
    assert (found.wan, found.ifb, found.major) == ("eth7", "up0", 0x4711)


@pytest.mark.parametrize("text", [b"", b"\0\xff\xfe", b"[[[[", b"- a\n- b\n", b"handle: zz\n"])
def test_what_cannot_be_read_at_all_gives_the_defaults(text: bytes) -> None:
    assert salvage_settings(text) == parse_settings(b"", "s")


def test_ports_among_which_clients_hop_are_service_ports() -> None:
    text = b"service_ports: [443]\nhop: {20000-50000: 20000, 1000-1100: engine, 700: 8443}\n"
    settings = parse_settings(text, "settings.yml")
    assert settings.hops == (
        Hop(700, 700, 8443), Hop(1000, 1100, 0), Hop(20_000, 50_000, 20_000),
    )  # fmt: skip
    assert settings.service_ports == (
        (443, 443), (700, 700), (1000, 1100), (8443, 8443), (20_000, 50_000),
    )  # fmt: skip
    every = parse_settings(b"service_ports: all\nhop: {20000-50000: 20000}\n", "settings.yml")
    assert every.service_ports == ()


@pytest.mark.parametrize(
    ("hop", "why"),
    [
        ("[20000]", "must be a mapping"),
        ("{50000-20000: 443}", "'50000-20000' is not a range"),
        ("{0-5: 443}", "is not a range"),
        ("{20000-70000: 443}", "is not a range"),
        ("{20000-20100: 0}", "0 is neither a port"),
        ("{20000-20100: true}", "True is neither a port"),
        ("{20000-20100: 20000-20001}", "nor 'engine'"),
        ("{20000-20100: []}", "nor 'engine'"),
        ("{20000-20100: 1, 20100: 2}", "port 20100 is in two ranges"),
        ("{100-200: 300, 300-400: 500}", "port 300, to which 100-200 are redirected"),
        ("{100-200: 300, 300-400: engine}", "port 300, to which 100-200 are redirected"),
    ],
)
def test_a_hop_that_leads_nowhere_is_refused(hop: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        parse_settings(f"hop: {hop}\n".encode(), "settings.yml")
