"""What the kernel says of the way out, of devices and qdiscs; what the preflight makes of it."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from ansible_collections.vff.qos.plugins.module_utils import kernel_features, rtnetlink
from ansible_collections.vff.qos.plugins.modules import qos_preflight

from .harness import Module, run


def wan(**params: object) -> tuple[str | None, list[str], list[str]]:
    """(interface, problems, notes) of the preflight."""
    problems: list[str] = []
    notes: list[str] = []
    return qos_preflight.check_wan(Module(**params), problems, notes), problems, notes


def uplink() -> str | None:
    link = rtnetlink.uplink()
    return link.name if link else None


def veth(name: str, peer: str) -> None:
    run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
    run("ip", "link", "set", name, "up")
    run("ip", "link", "set", peer, "up")


@pytest.fixture
def two() -> None:
    """Two devices with addresses; eth0 has the default route of IPv4."""
    veth("eth0", "far0")
    veth("eth1", "far1")
    run("ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
    run("ip", "address", "add", "198.51.100.2/24", "dev", "eth1")
    run("ip", "-6", "address", "add", "2001:db8:1::2/64", "dev", "eth1", "nodad")
    run("ip", "route", "add", "default", "via", "192.0.2.1", "metric", "100")


def test_without_a_default_route_there_is_no_uplink() -> None:
    veth("eth0", "far0")
    assert uplink() is None
    name, (problem,), _notes = wan()
    assert name is None
    assert problem == (
        "qos_if_wan is auto but there is no default route; set qos_if_wan to an interface; "
        "there are eth0, far0"
    )


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit", "throw"])
def test_a_default_route_that_rejects_is_no_uplink(kind: str) -> None:
    """The node's own default is IPv6's; IPv4's says where not to send."""
    veth("eth1", "far1")
    run("ip", "-6", "address", "add", "2001:db8:1::2/64", "dev", "eth1", "nodad")
    run("ip", "-6", "route", "add", "default", "via", "2001:db8:1::1")
    run("ip", "route", "add", kind, "default", "metric", "9999")
    assert uplink() == "eth1"
    run("ip", "-6", "route", "replace", kind, "default", "metric", "1")
    assert uplink() is None


@pytest.mark.usefixtures("two")
def test_metrics_and_types_of_service_are_the_kernels_to_weigh() -> None:
    via = ("via", "198.51.100.1")
    run("ip", "route", "add", "default", *via, "metric", "4294967295")
    assert uplink() == "eth0"
    run("ip", "route", "add", "default", *via, "tos", "0x10", "metric", "1")
    assert uplink() == "eth0"
    run("ip", "route", "add", "unreachable", "default", "metric", "200")
    assert uplink() == "eth0"
    run("ip", "route", "add", "default", *via, "metric", "1")
    assert uplink() == "eth1"


@pytest.mark.usefixtures("two")
def test_two_halves_are_a_default_route() -> None:
    """As OpenVPN's redirect-gateway and IPv6's 2000::/3 do it."""
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        run("ip", "route", "add", half, "via", "198.51.100.1")
    assert uplink() == "eth1"
    for half in ("0.0.0.0/1", "128.0.0.0/1", "default"):
        run("ip", "route", "del", half)
    assert uplink() is None
    run("ip", "-6", "route", "add", "2000::/3", "via", "2001:db8:1::1")
    assert uplink() == "eth1"


@pytest.mark.usefixtures("two")
def test_rules_count_as_for_a_packet_without_a_mark() -> None:
    run("ip", "route", "add", "default", "via", "198.51.100.1", "table", "51820")
    # Tailscale: its own marked packets go another way, and an exit node is a table for the rest.
    run("ip", "rule", "add", "fwmark", "0x80000/0xff0000", "lookup", "51820")
    assert uplink() == "eth0"
    # wg-quick: all but its own packets go into the tunnel.
    run("ip", "rule", "add", "not", "fwmark", "0xca6c", "lookup", "51820")
    assert uplink() == "eth1"


def test_a_tunnel_as_the_way_out_is_said() -> None:
    run("ip", "tuntap", "add", "wg0", "mode", "tun")
    run("ip", "link", "set", "wg0", "up")
    veth("eth0", "far0")
    run("ip", "address", "add", "10.8.0.2/24", "dev", "wg0")
    run("ip", "route", "add", "default", "dev", "wg0")
    name, problems, (note,) = wan()
    assert (name, problems) == ("wg0", [])
    assert "leave through wg0, a tunnel" in note and "eth0" in note
    assert wan(wan="eth0")[2] == []


def test_devices_that_lead_nowhere_are_no_uplink() -> None:
    run("ip", "link", "add", "sink", "type", "ifb")
    run("ip", "link", "set", "sink", "up")
    run("ip", "route", "add", "default", "dev", "sink")
    assert uplink() is None
    run("ip", "route", "replace", "default", "dev", "lo")
    assert uplink() is None


NAMES = ["впн0", "网卡", "eth0.100", "veth@x", "-", "a+b", '"eth"', "e'th;ls"]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_may_have_any_name_that_the_kernel_allows(name: str) -> None:
    veth("eth0", "far0")
    run("ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
    run("ip", "route", "add", "default", "via", "192.0.2.1")
    run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    run("ip", "link", "set", "dev", "x0", "name", name)
    run("ip", "link", "set", "dev", name, "up")
    run("ip", "link", "set", "dev", "x1", "up")
    assert wan() == ("eth0", [], [])
    assert wan(wan=name) == (name, [], [])
    run("ip", "address", "add", "10.8.0.2/24", "dev", name)
    run("ip", "route", "replace", "default", "via", "10.8.0.1", "dev", name)
    assert wan() == (name, [], [])


@pytest.mark.parametrize("name", ["enp0s9", "enx0123456789ab-uplink-of-rack-7", "ё" * 60])
def test_an_alternative_name_stands_for_its_device(name: str) -> None:
    veth("ens9", "far0")
    run("ip", "link", "property", "add", "dev", "ens9", "altname", name)
    assert wan(wan=name) == ("ens9", [], [])


@pytest.mark.parametrize("name", ["nosuch0", "enx0123456789ab-uplink", "x" * 200, "ё" * 65])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    veth("eth0", "far0")
    assert wan(wan=name)[:2] == (
        None,
        [f"there is no interface {name} (qos_if_wan); there are eth0, far0"],
    )


@pytest.mark.usefixtures("two")
def test_a_root_qdisc_of_somebody_else_needs_consent() -> None:
    run("tc", "qdisc", "add", "dev", "eth1", "root", "handle", "1:", "htb")
    assert wan()[1] == []
    run("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb")
    assert wan()[1] == [
        "eth0 has a root qdisc that somebody else configured (htb 1:); "
        "set qos_take_foreign_root to true if vff-qos may replace it"
    ]
    assert wan(take_foreign_root=True)[1] == []


@pytest.mark.usefixtures("two")
def test_an_ingress_qdisc_leaves_no_room_and_a_clsact_does() -> None:
    run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    assert wan()[1] == []
    run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    run("tc", "qdisc", "add", "dev", "eth0", "ingress")
    assert "tc qdisc del dev eth0 ingress" in wan()[1][0]


def tree(device: str, major: str, split: bool) -> None:
    """The roots that the agent makes."""
    parent = ["root"]
    if split:
        above = f"{int(major, 16) + 1:x}:"
        words = ("tbf", "rate", "1mbit", "burst", "9k", "latency", "9ms")
        run("tc", "qdisc", "add", "dev", device, "root", "handle", above, *words)
        parent = ["parent", f"{above}1"]
    run("tc", "qdisc", "add", "dev", device, *parent, "handle", f"{major}:", "htb")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("split", [False, True])
def test_our_own_tree_is_ours_after_the_handle_and_the_name_of_the_ifb_changed(split: bool) -> None:
    run("ip", "link", "add", "olduploads", "type", "ifb")
    tree("eth0", "5100", split)
    assert wan()[1] == []
    # Nobody's IFB says whose tree it is.
    assert "somebody else" in wan(handle="6200")[1][0]
    tree("olduploads", "5100", split)
    assert "somebody else" in wan(handle="6200")[1][0]
    run("ip", "link", "set", "olduploads", "alias", "vff-qos")
    assert wan(handle="6200", ifb="newuploads")[1] == []
    # A tree of another number is none of ours.
    run("tc", "qdisc", "add", "dev", "eth1", "root", "handle", "7300:", "htb")
    assert "somebody else" in wan(handle="6200", wan="eth1")[1][0]


def ifb_problems(name: str, facing: str = "eth0") -> list[str]:
    problems: list[str] = []
    qos_preflight.check_ifb(Module(ifb=name), facing, problems)
    return problems


def test_the_name_of_the_ifb_must_be_free_or_ours() -> None:
    veth("eth0", "far0")
    assert ifb_problems("vffqos0") == []
    assert ifb_problems("far0") == ["far0 (qos_if_ifb) exists and is a veth device, not an IFB"]
    assert "the interface that faces the clients" in ifb_problems("eth0")[0]
    run("ip", "link", "add", "vffqos0", "type", "ifb")
    assert ifb_problems("vffqos0") == []
    run("ip", "link", "set", "vffqos0", "up")
    assert "somebody else's IFB" in ifb_problems("vffqos0")[0]
    run("ip", "link", "set", "vffqos0", "alias", "vff-qos")
    assert ifb_problems("vffqos0") == []


def can(command: str) -> bool:
    """Whether this kernel does it, in a namespace that ends with the attempt."""
    return (
        subprocess.run(["unshare", "-n", "sh", "-ec", command], capture_output=True).returncode == 0
    )


def test_what_the_kernel_can_do_is_tried_where_no_list_says_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a kernel with everything built in and no module tree."""
    monkeypatch.setattr(qos_preflight, "read", lambda _path: "")
    monkeypatch.setattr(os, "uname", lambda: type("uname", (), {"release": "0.0-no-such-kernel"}))
    names = [*kernel_features.ATTEMPTS, *kernel_features.NETFILTER]
    lacking, unknown = qos_preflight.try_features(Module(), names)
    assert unknown == []
    assert ("sch_htb" in lacking) == (not can("tc qdisc add dev lo root htb"))
    assert ("ifb" in lacking) == (not can("ip link add i0 type ifb"))
    assert ("cls_fw" in lacking) == (
        not can("tc qdisc add dev lo root handle 1: htb; tc filter add dev lo parent 1: prio 1 fw")
    )
    assert ("nf_tables" in lacking) == (not can("nft add table inet x"))
    problems: list[str] = []
    notes: list[str] = []
    qos_preflight.check_kernel(Module(kernel_modules=["sch_htb", "ifb"]), problems, notes)
    assert (problems, notes) == ([], [])


def test_where_no_namespace_can_be_made_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container that may not: that is no reason to refuse the node."""
    forbidden = tmp_path / "unshare"
    forbidden.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    names = ["sch_htb", "act_ctinfo"]
    assert qos_preflight.try_features(Module(), names) == ([], names)


def test_what_the_kernel_lacks_is_named_once() -> None:
    attempts = {**kernel_features.ATTEMPTS, "sch_nosuch": "tc qdisc add dev lo root nosuch"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_features, "ATTEMPTS", attempts)
        assert qos_preflight.try_features(Module(), ["sch_htb", "sch_nosuch"]) == (
            ["sch_nosuch"],
            [],
        )


def test_without_the_tools_nobody_can_tell_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = {"sch_x": "no-such-command-here add", "sch_htb": kernel_features.ATTEMPTS["sch_htb"]}
    monkeypatch.setattr(kernel_features, "ATTEMPTS", attempts)
    assert qos_preflight.try_features(Module(), ["sch_x", "sch_htb"]) == ([], ["sch_x"])
    monkeypatch.setattr(qos_preflight, "read", lambda _path: "")
    problems: list[str] = []
    notes: list[str] = []
    qos_preflight.check_kernel(Module(kernel_modules=["sch_x"]), problems, notes)
    assert problems == []
    assert "sch_x shows when vff-qos starts" in notes[0]


def test_what_of_sing_box_is_not_there_yet(tmp_path: Path) -> None:
    secret, log = tmp_path / "secret", tmp_path / "log"
    module = Module(
        singbox_logs=[str(log)], singboxes=[{"address": "[::1]:9091", "secret_file": str(secret)}]
    )
    first, second, third = qos_preflight.look_at_singboxes(module)
    assert first.startswith(f"{log} (qos_sources, singbox_log) does not exist yet")
    assert second.startswith(f"{secret} (secret_file of the source singbox) does not exist yet")
    assert third.startswith("nothing answers at [::1]:9091 (qos_sources, singbox) yet (")
    secret.touch()
    log.touch()
    with socket.create_server(("::1", 9091), family=socket.AF_INET6):
        assert qos_preflight.look_at_singboxes(module) == []
