"""What the preflight reads from a host."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Plugin = Callable[[str], ModuleType]


@pytest.fixture
def preflight(plugin: Plugin) -> ModuleType:
    return plugin("modules/qos_preflight")


@pytest.mark.parametrize(
    ("name", "version", "family"),
    [
        ("debian", "12", "debian"),
        ("debian", "13", "debian"),
        ("ubuntu", "22.04", "debian"),
        ("ubuntu", "24.04", "debian"),
        ("rocky", "9.4", "redhat"),
        ("debian", "11", None),
        ("ubuntu", "20.04", None),
        ("rhel", "8.10", None),
        ("alpine", "3.20", None),
    ],
)
def test_only_supported_systems_pass(
    preflight: ModuleType, name: str, version: str, family: str | None
) -> None:
    text = f'NAME="x"\n# a comment\nID={name}\nVERSION_ID="{version}"\n'
    found, problem = preflight.system_family(preflight.parse_os_release(text))
    assert found == family
    assert (problem is None) == (family is not None)
    if problem:
        assert problem.startswith(f"{name} {version} is not one of Debian 12")


def test_a_system_without_a_version_is_named_without_one(preflight: ModuleType) -> None:
    assert preflight.system_family({"ID": "arch"})[1].startswith("arch is not one of")


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t00000000\t0202000A\t0003\t0\t0\t200\t00000000\t0\t0\t0
wan0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
down0\t00000000\t0202000A\t0002\t0\t0\t10\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_the_default_route_with_the_lowest_metric_names_the_interface(
    preflight: ModuleType,
) -> None:
    assert preflight.default_route_v4(ROUTES) == "wan0"
    assert preflight.default_route_v4(ROUTES.splitlines()[0]) is None


ROUTES_V6 = """\
fd000001000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     wan0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000001000000000000000000000001 00000400 00000001 00000000 00000003     wan0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
"""  # noqa: E501


def test_the_unreachable_route_on_lo_is_no_default_route(preflight: ModuleType) -> None:
    assert preflight.default_route_v6(ROUTES_V6) == "wan0"
    assert preflight.default_route_v6(ROUTES_V6.splitlines()[2]) is None


def test_a_module_may_be_loaded_built_in_or_on_the_disk(preflight: ModuleType) -> None:
    missing = preflight.missing_modules(
        ["sch_htb", "act_mirred", "nf_tables", "cls_fw", "ifb"],
        "sch_htb 28672 0 - Live 0x0000000000000000\n",
        "kernel/net/sched/act_mirred.ko\n",
        "kernel/net/netfilter/nf_tables.ko.xz: kernel/lib/libcrc32c.ko.xz\n"
        "kernel/net/sched/cls-fw.ko.zst:\n",
    )
    assert missing == ["ifb"]


@pytest.mark.parametrize(
    ("qdiscs", "expected"),
    [
        ([{"kind": "noqueue", "handle": "0:", "root": True}], (None, None)),
        ([{"kind": "mq", "handle": "0:", "root": True}], (None, None)),
        ([{"kind": "htb", "handle": "5100:", "root": True}], (None, None)),
        ([{"kind": "tbf", "handle": "5101:", "root": True}], (None, None)),
        ([{"kind": "tbf", "handle": "5102:", "root": True}], ("tbf 5102:", None)),
        ([{"kind": "fq", "handle": "8001:", "root": True}], ("fq 8001:", None)),
        ([{"kind": "htb", "handle": "1:", "root": True}], ("htb 1:", None)),
        ([{"kind": "clsact", "handle": "ffff:", "parent": "ffff:fff1"}], (None, None)),
        ([{"kind": "ingress", "handle": "ffff:", "parent": "ffff:fff1"}], (None, "ingress")),
    ],
)
def test_what_has_a_handle_was_put_there_by_somebody(
    preflight: ModuleType, qdiscs: list[dict[str, Any]], expected: tuple[str | None, str | None]
) -> None:
    assert preflight.foreign_qdiscs(qdiscs, 0x5100) == expected


def test_an_account_has_a_group_and_nobody_has_none(preflight: ModuleType) -> None:
    root = preflight.account("root")
    assert root["group"] == "root"
    assert root["home"] == os.path.expanduser("~root")
    assert preflight.account("no-such-account") == {}
