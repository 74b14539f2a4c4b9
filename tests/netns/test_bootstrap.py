"""The kernel's objects in a real kernel: made, left alone, healed, taken away.

A kernel without cls_fw, cls_flower or act_ctinfo runs all but the filters; the
tests that need those are skipped and say so.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vff_qos.cli import main
from vff_qos.commands import bootstrap
from vff_qos.commands.killswitch import resume, suspend
from vff_qos.core.htb import PROVISIONAL
from vff_qos.core.settings import Settings
from vff_qos.errors import KernelRefused, Refused
from vff_qos.journal import Journal
from vff_qos.kernel import route
from vff_qos.kernel.packed import tc
from vff_qos.kernel.packed.nft_elements import EarlyMaps
from vff_qos.lock import Lock
from vff_qos.state import KERNEL_RECORD, State

from .harness import (
    CLIENT,
    CLIENT6,
    MARK,
    NODE,
    WAN,
    Memory,
    Network,
    add_user,
    comparable,
    exchange,
    root_of,
    run,
    snapshot,
)

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")

#: As in SETTINGS.
PORTS = "service_ports: [443, 20000-20100]\n"


def ours(settings: Settings) -> str:
    """What is at the root of a device with our tree."""
    return "tbf 5101:" if settings.split else "htb 5100:"


def test_present_twice_then_absent_leaves_what_was_before(settings: Settings) -> None:
    before, memory = snapshot(), Memory()
    planned = bootstrap.reconcile(settings, memory, dry_run=True)
    assert snapshot() == before and memory.values == {}
    assert bootstrap.reconcile(settings, memory) == planned
    assert root_of(WAN) == root_of("vffqos0") == ours(settings)
    there = snapshot()
    monitors = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for command in (["tc", "monitor"], ["ip", "monitor", "link"], ["nft", "monitor"])
    ]
    time.sleep(0.5)
    assert bootstrap.reconcile(settings, memory) == []
    time.sleep(0.2)
    for monitor in monitors:
        monitor.terminate()
        assert monitor.communicate()[0] == ""
    assert snapshot() == there
    planned = bootstrap.remove(settings, memory, dry_run=True)
    assert bootstrap.remove(settings, memory) == planned
    assert snapshot() == before
    assert bootstrap.remove(settings, memory) == []
    assert memory.get_value(KERNEL_RECORD) is None


def test_live_classes_survive(settings: Settings) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    for dev in (WAN, "vffqos0"):
        add_user(dev)
    changed = replace(settings, node_ceil_bps=5 * 10**8, unclassified_upload_bps=10**8)
    lines = bootstrap.reconcile(changed, memory)
    assert [line.split()[0] for line in lines] == ["change"] * 4
    for dev in (WAN, "vffqos0"):
        assert "class htb 5100:2a" in run("tc", "class", "show", "dev", dev)


def test_early_maps_come_and_go_and_keep_their_elements(settings: Settings) -> None:
    memory, maps = Memory(), EarlyMaps()
    client4, client6 = socket.inet_aton(CLIENT), socket.inet_pton(socket.AF_INET6, CLIENT6)[:8]
    for ports in (((443, 443),), (), settings.service_ports):
        early = replace(settings, early_shaping=True, service_ports=ports)
        bootstrap.reconcile(early, memory)
        assert bootstrap.reconcile(early, memory) == []
    maps.change({client4: MARK | PROVISIONAL, client6: MARK | PROVISIONAL}, [])
    assert bootstrap.reconcile(early, memory) == []
    shown = run("nft", "list", "table", "inet", "vff_qos")
    assert f"{CLIENT} expires" in shown and "fd09:: expires" in shown
    assert shown.count(f": {MARK | PROVISIONAL:#x}") == 2
    with pytest.raises(KernelRefused) as caught:
        maps.change({}, [client4, b"\1\2\3\4"])
    assert caught.value.code == errno.ENOENT
    assert f"{CLIENT} expires" in run("nft", "list", "table", "inet", "vff_qos")  # all or nothing
    maps.change({}, [client4])
    many = {bytes([10, 1, i >> 8, i & 255]): MARK + i for i in range(3_000)}
    maps.replace(many)
    shown = run("nft", "list", "table", "inet", "vff_qos")
    assert shown.count("expires") == 3_000 and CLIENT not in shown
    maps.change({client4: MARK}, many)
    assert run("nft", "list", "table", "inet", "vff_qos").count("expires") == 1
    maps.change(many, [])
    assert run("nft", "list", "table", "inet", "vff_qos").count("expires") == 3_001
    assert bootstrap.reconcile(settings, memory)
    assert "early" not in run("nft", "list", "table", "inet", "vff_qos")
    maps.clear()  # nothing to clear is no error
    maps.close()


def test_the_kill_switch_lifts_what_is_shared_and_bootstrap_puts_it_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = replace(settings, unclassified_upload_bps=10**7, unclassified_download_bps=2 * 10**7)
    free = Settings().node_ceil_bps
    state, lock, journal = State(str(tmp_path)), Lock(str(tmp_path)), Journal()

    def ceils() -> list[int]:
        classes = tc.Tc()
        have = [classes.classes(socket.if_nametoindex(d), 0x5100) for d in ("vffqos0", WAN)]
        classes.close()
        return [found[minor].params.ceil_bps for found in have for minor in (1, 0xFFFE)]

    limited = [10**9, 10**7, 10**9, 2 * 10**7]
    assert suspend(low, state, lock, journal) == 0  # nothing is there yet
    bootstrap.reconcile(low, state)
    assert ceils() == limited
    assert suspend(low, state, lock, journal) == 0
    assert ceils() == [free] * 4
    assert suspend(low, state, lock, journal) is None
    # The kill switch comes while a repair is under way that did not know of it.
    since, reconcile = state.get_value("suspended"), bootstrap.reconcile

    def meanwhile(*args: Any) -> list[str]:
        done = reconcile(*args)
        state.set_value("suspended", since)
        return done

    state.set_value("suspended", None)
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "reconcile", meanwhile)
        # Four classes and the table's rule by which connections are followed, twice.
        assert len(bootstrap.repair(low, state)) == 10
    assert ceils() == [free] * 4
    ceil = "wan_ceil: 500mbit\n" if settings.split else ""
    files = [
        ("settings", f"{ceil}{PORTS}unclassified_upload: 10mbit\nleaf: pfifo\nif_wan: wan0\n"),
        ("policy", "default: {}"),
    ]
    options = [f"--{what}-dir={tmp_path}" for what in ("state", "run")]
    for what, text in files:
        (tmp_path / what).write_text(text)
        options.append(f"--{what}={tmp_path / what}")
    assert main(["bootstrap", "--repair", *options]) == 0
    assert ceils() == [free] * 4
    assert len(bootstrap.reconcile(low, state)) == 5
    assert resume(state, lock, journal) == 0
    assert ceils() == limited


@pytest.mark.parametrize(
    "harm",
    [
        ["nft", "flush", "ruleset"],
        ["nft", "add", "rule", "inet", "vff_qos", "post", "drop"],
        ["nft", "add", "table", "inet", "vff_qos", "{", "flags", "dormant", ";", "}"],
        ["tc", "qdisc", "del", "dev", WAN, "root"],
        ["tc", "qdisc", "replace", "dev", "vffqos0", "root", "pfifo"],
        ["tc", "qdisc", "del", "dev", WAN, "clsact"],
        ["tc", "class", "del", "dev", WAN, "classid", "5100:fffe"],
        ["tc", "class", "change", "dev", WAN, "classid", "5100:1", "htb", "rate", "1mbit"],
        ["ip", "link", "set", "vffqos0", "down"],
        ["ip", "link", "del", "vffqos0"],
    ],
)
def test_heals(settings: Settings, harm: list[str]) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    healthy = snapshot()
    run(*harm)
    assert bootstrap.reconcile(settings, memory)
    now = snapshot()
    assert {k: comparable(v) for k, v in now.items()} == {
        k: comparable(v) for k, v in healthy.items()
    }
    assert bootstrap.reconcile(settings, memory) == []


@pytest.mark.parametrize(
    "harm",
    [
        ["tc", "filter", "del", "dev", WAN, "parent", "5100:", "pref", "65535"],
        [
            "tc",
            "filter",
            "add",
            "dev",
            WAN,
            "parent",
            "5100:",
            "pref",
            "65535",
            "handle",
            "9",
            "fw",
            "classid",
            "5100:2",
        ],
        ["tc", "filter", "del", "dev", WAN, "ingress", "pref", "20736", "protocol", "ip"],
        ["tc", "filter", "del", "dev", WAN, "ingress", "chain", "20736", "pref", "1"],
        ["tc", "filter", "del", "dev", WAN, "ingress"],
    ],
)
def test_heals_filters(full: Settings, harm: list[str]) -> None:
    memory = Memory()
    bootstrap.reconcile(full, memory)
    run(*harm)
    assert bootstrap.reconcile(full, memory)
    assert bootstrap.reconcile(full, memory) == []


@pytest.mark.parametrize(
    "foreign",
    [
        ["root handle 7: pfifo limit 77"],
        ["root handle 7: bfifo limit 77777"],
        ["root handle 7: fq_codel limit 77 flows 9"],
        ["root handle 7: fq limit 77"],
        ["root handle 7: cake bandwidth 77mbit"],
        ["root handle 7: tbf rate 7mbit burst 7k limit 7k"],
        ["root handle 7: prio bands 4", "parent 7:2 handle 72: pfifo limit 77"],
    ],
)
def test_foreign_root_needs_consent_and_comes_back(settings: Settings, foreign: list[str]) -> None:
    for words in foreign:
        command = ["tc", "qdisc", "add", "dev", WAN, *words.split()]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if "unknown" in made.stderr:
            pytest.skip(f"this kernel lacks it: {words}")
        assert made.returncode == 0, made.stderr
    name = f"{foreign[0].split()[3]} 7:"
    before = snapshot()
    memory = Memory()
    with pytest.raises(Refused, match=f"root qdisc of {WAN} is {name}, which somebody set"):
        bootstrap.reconcile(settings, memory)
    assert snapshot() == before and memory.values == {}
    consent = replace(settings, take_foreign_root=True)
    bootstrap.reconcile(consent, memory)
    assert root_of(WAN) == ours(settings)
    assert bootstrap.reconcile(settings, memory) == []
    assert bootstrap.remove(settings, memory)[-3:] == [
        f"restore root qdisc {name} of {WAN}",
        "remove nft table inet vff_qos",
        "remove ifb device vffqos0",
    ]
    assert snapshot() == before


def test_what_cannot_be_restored_is_said(settings: Settings) -> None:
    run("tc", "qdisc", "add", "dev", WAN, "root", "handle", "7:", "htb", "default", "1")
    run("tc", "class", "add", "dev", WAN, "parent", "7:", "classid", "7:1", "htb", "rate", "1mbit")
    run("tc", "qdisc", "add", "dev", WAN, "parent", "7:1", "handle", "71:", "pfifo")
    memory = Memory()
    bootstrap.reconcile(replace(settings, take_foreign_root=True), memory)
    lines = bootstrap.remove(settings, memory)
    assert f"restore root qdisc htb 7: of {WAN}, without its classes and filters" in lines
    assert lines[-1].startswith(f"pfifo 71: of {WAN} could not be restored")
    assert root_of(WAN) == "htb 7:"


def test_multiqueue_default_comes_back(settings: Settings) -> None:
    run("ip", "link", "add", "mq0", "numtxqueues", "4", "type", "ifb")
    run("ip", "link", "set", "mq0", "up")
    before = snapshot()
    assert "qdisc mq 0: dev mq0 root" in before["qdiscs"]
    memory = Memory()
    bootstrap.reconcile(replace(settings, wan="mq0"), memory)
    assert root_of("mq0") == ours(settings)
    bootstrap.remove(replace(settings, wan="mq0"), memory)
    assert snapshot() == before


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
def test_ingress_of_others_is_used_and_left(settings: Settings, kind: str) -> None:
    run("tc", "qdisc", "add", "dev", WAN, kind)
    theirs = ["dev", WAN, "ingress", "pref", "9", "protocol", "ip", "u32"]
    run("tc", "filter", "add", *theirs, "match", "u32", "0", "0", "flowid", "1:1")
    before = snapshot()
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    assert bootstrap.reconcile(settings, memory) == []
    bootstrap.remove(settings, memory)
    assert snapshot() == before


def test_our_clsact_stays_while_others_use_it(settings: Settings) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    theirs = ["dev", WAN, "egress", "pref", "9", "protocol", "ip", "u32"]
    run("tc", "filter", "add", *theirs, "match", "u32", "0", "0", "flowid", "1:1")
    bootstrap.remove(settings, memory)
    assert "u32" in run("tc", "filter", "show", "dev", WAN, "egress")


def test_wan_moves_is_renamed_goes_down_and_vanishes(settings: Settings) -> None:
    memory = Memory()
    run("ip", "link", "add", "wan9", "type", "veth", "peer", "wan9p")
    before = snapshot()
    bootstrap.reconcile(replace(settings, wan="wan9"), memory)  # it is down
    bootstrap.reconcile(settings, memory)
    assert "5100:" not in run("tc", "qdisc", "show", "dev", "wan9")
    assert "clsact" not in run("tc", "qdisc", "show", "dev", "wan9")
    bootstrap.remove(settings, memory)
    assert snapshot() == before
    bootstrap.reconcile(replace(settings, wan="wan9"), memory)
    run("ip", "link", "set", "wan9", "name", "net9")
    with pytest.raises(Refused, match=f"interface wan9 does not exist; there are: .*{WAN}"):
        bootstrap.reconcile(replace(settings, wan="wan9"), memory)
    assert bootstrap.reconcile(replace(settings, wan="net9"), memory) == []
    run("ip", "link", "del", "net9")
    bootstrap.reconcile(settings, memory)
    assert root_of(WAN) == ours(settings)


def test_auto_takes_the_device_of_the_default_route(settings: Settings) -> None:
    auto = replace(settings, wan="auto")
    with pytest.raises(Refused, match="auto finds no default route"):
        bootstrap.reconcile(auto, Memory())
    run("ip", "-6", "route", "add", "default", "via", CLIENT6)
    bootstrap.reconcile(auto, Memory())
    assert root_of(WAN) == ours(settings)


def test_without_ipv6(settings: Settings) -> None:
    for name in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    assert bootstrap.reconcile(settings, memory) == []


def test_a_step_that_fails_says_what_was_done(
    net: Network, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise KernelRefused(2, "adding clsact")

    monkeypatch.setattr(route, "add_clsact", refuse)
    with pytest.raises(KernelRefused, match="Not done: add ingress qdisc clsact") as caught:
        bootstrap.reconcile(settings, Memory())
    assert caught.value.code == 2
    assert "done: add ifb device vffqos0;" in str(caught.value)
    exchange(net, NODE, 443)


def test_ifb_of_others_is_refused(settings: Settings) -> None:
    run("ip", "link", "add", "vffqos0", "type", "veth", "peer", "name", "other0")
    before = snapshot()
    with pytest.raises(Refused, match="vffqos0 exists and is not ours"):
        bootstrap.reconcile(settings, Memory())
    assert snapshot() == before
