"""Plans: from settings and what is there to steps, without a kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vff_qos.core.htb import shared_class
from vff_qos.core.plan import nft_table, plan
from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.handles import (
    INGRESS_PARENT,
    ROOT_PARENT,
    SPLIT_LIMIT,
    Interface,
    Qdisc,
    splitter,
)
from vff_qos.core.plan.kernel_record import DeviceRecord, KernelRecord, SavedQdisc
from vff_qos.core.plan.objects import (
    Clsact,
    CopyMark,
    Filter,
    Flower,
    Ifb,
    NftTable,
    Observed,
    OtherAction,
    OtherMatch,
    Place,
    SharedClass,
    SharedLeaf,
    Sysctl,
    SysctlState,
    Tree,
)
from vff_qos.core.settings import Settings
from vff_qos.errors import Refused

SETTINGS = Settings(wan="eth0", service_ports=((443, 443), (20000, 20100)))
TIMESTAMP = "net.netfilter.nf_conntrack_timestamp"


def links(*names: str) -> dict[str, Interface]:
    names = ("lo", *names)
    return {name: Interface(i, "", "", True, 1000) for i, name in enumerate(names, 1)}


def plain() -> Observed:
    """A host with two interfaces and the kernel's defaults."""
    roots = [Qdisc("eth0", "fq_codel", 0, ROOT_PARENT), Qdisc("eth1", "noqueue", 0, ROOT_PARENT)]
    return Observed(
        links("eth0", "eth1"), "eth0", roots, sysctls={TIMESTAMP: SysctlState("1", True)}
    )


def present(
    settings: Settings, observed: Observed, record: KernelRecord | None = None
) -> plan.Plan:
    return plan.present(settings, observed, record or KernelRecord())


def absent(settings: Settings, observed: Observed, record: KernelRecord | None = None) -> plan.Plan:
    return plan.absent(settings, observed, record or KernelRecord())


def after(settings: Settings, wan: str, base: Observed) -> Observed:
    """What the kernel shows when every desired object is there."""
    seen = replace(base, links=dict(base.links), filters=list(base.filters), classes={})
    seen.qdiscs = [q for q in base.qdiscs if (q.dev, q.parent) != (wan, ROOT_PARENT)]
    for item in desired(settings, wan):
        match item:
            case Ifb():
                seen.links[item.dev] = Interface(50, "ifb", item.alias, item.up, item.txqlen)
            case NftTable():
                seen.nft = NftTable([{"metainfo": {}}, *item.objects])
            case Tree(dev, major, default, split_bytes):
                above = ROOT_PARENT
                if split_bytes:
                    above = splitter(major) | 1
                    limit = split_bytes * SPLIT_LIMIT
                    tbf = Qdisc(dev, "tbf", splitter(major), ROOT_PARENT, limit=limit)
                    seen.qdiscs.append(tbf)
                seen.qdiscs.append(Qdisc(dev, "htb", major << 16, above, b"", default or 0))
            case SharedClass():
                seen.classes.setdefault((item.dev, item.major), {})[item.minor] = item.params
            case SharedLeaf(dev, major, minor, kind):
                seen.qdiscs.append(Qdisc(dev, kind, minor << 16, major << 16 | minor))
            case Clsact():
                if not seen.ingress(item.dev):
                    seen.qdiscs.append(Qdisc(item.dev, "clsact", 0xFFFF0000, INGRESS_PARENT))
            case Filter():
                seen.filters.append(item)
    return seen


def theirs(place: Place, match: Flower | OtherMatch) -> Filter:
    """A filter of somebody."""
    return Filter(place, match, (OtherAction("gact"),))


def texts(found: plan.Plan) -> list[str]:
    return [str(step) for step in found.operations]


def test_fresh_host_gets_everything_and_the_redirect_last() -> None:
    lines = texts(present(SETTINGS, plain()))
    assert lines[0] == "add ifb device vffqos0"
    nft, root = "add nft table inet vff_qos", "add root qdisc htb 5100: of eth0"
    assert lines.index(nft) < lines.index(root)
    first_redirect = next(i for i, line in enumerate(lines) if "ingress filter 2073" in line)
    assert all("ingress filter 2073" in line for line in lines[first_redirect:])
    assert "add ingress filter 20739 of eth0: ipv6 udp port 20000-20100" in lines
    assert len(lines) == len(set(lines)) == 23


def test_second_run_has_nothing_to_do() -> None:
    made = present(SETTINGS, plain())
    again = present(SETTINGS, after(SETTINGS, "eth0", plain()), made.after)
    assert again.operations == []
    assert again.after == made.after
    assert KernelRecord.from_json(json.loads(json.dumps(made.after.to_json()))) == made.after


def test_packets_are_split_above_the_tree_and_frames_follow_the_mtu() -> None:
    split = replace(SETTINGS, split=True)
    text = "root qdisc htb 5100: of eth0, below a tbf that splits packets above {} bytes"
    assert f"add {text.format(1536)}" in texts(present(split, plain()))
    seen = after(split, "eth0", plain())
    assert present(split, seen).operations == []
    # The kill switch takes the limits away, and leaves the tree as it is.
    lifted = {type(step.target) for step in present(split.lifted(), seen).operations}
    assert lifted <= {SharedClass, NftTable}
    seen.links["eth0"] = seen.links["eth0"]._replace(mtu=9000)
    assert f"change {text.format(9036)}" in texts(present(split, seen))
    assert not any(step.startswith("change") for step in texts(present(SETTINGS, seen)))
    assert f"remove {text.format(1536)}" in texts(present(SETTINGS, seen))


def test_live_classes_of_users_are_not_touched() -> None:
    seen = after(SETTINGS, "eth0", plain())
    seen.classes["eth0", 0x5100][0x2A] = shared_class(10**6)
    seen.classes["eth0", 0x5100][1] = shared_class(10**9)
    lines = texts(present(SETTINGS, seen))
    assert lines == ["change class :1 of eth0: node ceiling, 100gbit"]


def test_other_ports_are_added_before_old_ones_go() -> None:
    seen = after(SETTINGS, "eth0", plain())
    lines = texts(present(replace(SETTINGS, service_ports=((8443, 8443),)), seen))
    assert lines.pop(0) == "change nft table inet vff_qos"
    assert [line.split()[0] for line in lines] == ["add"] * 4 + ["remove"] * 8
    lines = texts(present(replace(SETTINGS, service_ports=()), seen))
    assert lines[1:3] == [
        "add ingress filter 20740 of eth0: ip all ports",
        "add ingress filter 20741 of eth0: ipv6 all ports",
    ]


def test_ports_of_services_are_shaped_beside_the_engines() -> None:
    """Uploads pass the IFB by the port; none may match two filters, and be shaped twice."""
    static = replace(SETTINGS, has_static=True, static_ports=((443, 444), (8000, 8010)))
    seen = after(SETTINGS, "eth0", plain())
    lines = texts(present(static, seen))
    assert lines.pop(0) == "change nft table inet vff_qos"
    # 443 makes way for 443 to 444; TCP and UDP, IPv4 and IPv6.
    assert [line.split()[0] for line in lines] == ["add"] * 8 + ["remove"] * 4
    assert present(static, after(static, "eth0", plain())).operations == []
    assert texts(present(replace(static, service_ports=()), seen))[1:3] == [
        "add ingress filter 20740 of eth0: ip all ports",
        "add ingress filter 20741 of eth0: ipv6 all ports",
    ]


def test_removal_unredirects_first_and_removes_the_ifb_last() -> None:
    made = present(SETTINGS, plain())
    gone = absent(SETTINGS, after(SETTINGS, "eth0", plain()), made.after)
    lines = texts(gone)
    assert all("ingress filter 2073" in line for line in lines[:8])
    assert lines[8:] == [
        "remove ingress filter 1 of eth0: packets with our mark to vffqos0",
        "remove ingress filter 2 of eth0: other packets, unmarked, to vffqos0",
        "remove ingress qdisc clsact of eth0",
        "remove root qdisc htb 5100: of eth0",
        "remove nft table inet vff_qos",
        "remove ifb device vffqos0",
    ]
    assert gone.after == KernelRecord() and gone.after.to_json() is None
    assert absent(SETTINGS, plain()).operations == []


def test_foreign_root_is_refused_or_recorded_and_restored() -> None:
    foreign = plain()
    foreign.qdiscs[0] = Qdisc("eth0", "fq", 0x80010000, ROOT_PARENT, b"\1\2")
    with pytest.raises(Refused, match="the root qdisc of eth0 is fq 8001:, which somebody set"):
        present(SETTINGS, foreign)
    made = present(replace(SETTINGS, take_foreign_root=True), foreign)
    saved = made.before.devices["eth0"].qdiscs
    assert saved == (SavedQdisc("fq", 0x80010000, ROOT_PARENT, "0102"),)
    # Once it is ours, consent is no longer needed.
    seen = after(SETTINGS, "eth0", foreign)
    assert present(SETTINGS, seen, made.after).operations == []
    lines = texts(absent(SETTINGS, seen, made.after))
    at = lines.index("remove root qdisc htb 5100: of eth0")
    assert lines[at + 1] == "restore root qdisc fq 8001: of eth0"


def test_clsact_of_others_stays() -> None:
    theirs = plain()
    theirs.qdiscs.append(Qdisc("eth0", "clsact", 0xFFFF0000, INGRESS_PARENT))
    made = present(SETTINGS, theirs)
    assert not any("clsact" in line for line in texts(made))
    gone = absent(SETTINGS, after(SETTINGS, "eth0", theirs), made.after)
    assert not any("clsact" in line for line in texts(gone))


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_our_clsact_stays_while_others_have_filters_in_it(hook: str) -> None:
    made = present(SETTINGS, plain())
    seen = after(SETTINGS, "eth0", plain())
    seen.filters.append(theirs(Place("eth0", hook, 0, 7, "all", 1), OtherMatch("bpf")))
    assert not any("clsact" in line for line in texts(absent(SETTINGS, seen, made.after)))


def test_filters_of_others_are_never_removed_and_a_taken_preference_is_refused() -> None:
    seen = plain()
    seen.qdiscs.append(Qdisc("eth0", "ingress", 0xFFFF0000, INGRESS_PARENT))
    seen.filters.append(theirs(Place("eth0", "ingress", 0, 10, "ip", 1), Flower(6, 22, 22)))
    assert not any(line.startswith("remove") for line in texts(present(SETTINGS, seen)))
    seen.filters.append(theirs(Place("eth0", "ingress", 0, 20736, "ip", 1), OtherMatch("u32")))
    with pytest.raises(Refused, match="holds preference 20736"):
        present(SETTINGS, seen)


def test_wan_that_moves_leaves_nothing_behind() -> None:
    old = present(SETTINGS, plain())
    made = present(replace(SETTINGS, wan="eth1"), after(SETTINGS, "eth0", plain()), old.after)
    lines = texts(made)
    assert lines.index("add root qdisc htb 5100: of eth1") < lines.index(
        "remove root qdisc htb 5100: of eth0"
    )
    assert "remove ingress qdisc clsact of eth0" in lines
    assert not any("vffqos0" in line and "device" in line for line in lines)
    assert set(made.before.devices) == {"eth0", "eth1"}
    assert set(made.after.devices) == {"eth1"}


def test_ifb_that_is_renamed() -> None:
    seen = after(SETTINGS, "eth0", plain())
    lines = texts(present(replace(SETTINGS, ifb="up0"), seen))
    assert lines[0] == "add ifb device up0"
    assert lines[-1] == "remove ifb device vffqos0"
    assert "remove ingress filter 1 of eth0: packets with our mark to vffqos0" in lines


def test_ifb_name_taken_by_something_else() -> None:
    seen = plain()
    for kind, alias, up in (("dummy", "", True), ("ifb", "", True), ("ifb", "other", False)):
        seen.links["vffqos0"] = Interface(9, kind, alias, up, 32)
        with pytest.raises(Refused, match="vffqos0 exists and is not ours"):
            present(SETTINGS, seen)
    seen.links["vffqos0"] = Interface(9, "ifb", "", False, 32)  # a creation cut short
    assert texts(present(SETTINGS, seen))[0] == "change ifb device vffqos0"


def test_other_handle_replaces_the_old_trees() -> None:
    old = present(SETTINGS, plain())
    settings = replace(SETTINGS, major=0x5200)
    lines = texts(present(settings, after(SETTINGS, "eth0", plain()), old.after))
    assert "add root qdisc htb 5200: of eth0" in lines
    assert not any("remove root" in line for line in lines)
    assert "change nft table inet vff_qos" in lines


def test_root_with_another_default_is_made_anew_with_all_that_is_in_it() -> None:
    seen = after(SETTINGS, "eth0", plain())
    at = next(i for i, q in enumerate(seen.qdiscs) if (q.dev, q.parent) == ("eth0", ROOT_PARENT))
    seen.qdiscs[at] = seen.qdiscs[at]._replace(default=0x10)
    assert texts(present(SETTINGS, seen)) == [
        "remove root qdisc htb 5100: of eth0",
        "add root qdisc htb 5100: of eth0",
        "add class :1 of eth0: node ceiling, 100gbit",
        "add class :fffe of eth0: unclassified traffic, 100gbit",
        "add leaf qdisc fq_codel of class :fffe of eth0",
        "add filter of eth0: class from mark",
    ]


def test_a_filter_that_was_changed_is_put_right() -> None:
    seen = after(SETTINGS, "eth0", plain())
    place = Place("eth0", "ingress", 0, 20736, "ip", 443 << 16 | 443)
    seen.filters = [f for f in seen.filters if f.place != place]
    seen.filters.append(theirs(place, Flower(6, 443, 443)))
    assert [line.split()[0] for line in texts(present(SETTINGS, seen))] == ["remove", "add"]


def test_lost_record_still_removes_an_empty_clsact() -> None:
    lines = texts(absent(SETTINGS, after(SETTINGS, "eth0", plain())))
    assert "remove ingress qdisc clsact of eth0" in lines


def test_record_of_a_device_that_was_replaced_is_not_believed() -> None:
    old = present(SETTINGS, plain()).after
    new = plain()
    new.links["eth0"] = new.links["eth0"]._replace(ifindex=77)
    new.qdiscs.append(Qdisc("eth0", "clsact", 0xFFFF0000, INGRESS_PARENT))
    assert present(SETTINGS, new, old).after.devices["eth0"].ingress is False


def test_wan_is_found_or_named_in_one_sentence() -> None:
    seen = plain()
    assert plan.find_wan(Settings(), seen) == "eth0"
    seen.default = None
    with pytest.raises(Refused, match="auto finds no default route; set wan to one of: eth0, eth1"):
        plan.find_wan(Settings(), seen)
    with pytest.raises(Refused, match="interface eth7 does not exist; there are: eth0, eth1"):
        plan.find_wan(Settings(wan="eth7"), seen)
    seen.links["eth1"] = seen.links["eth1"]._replace(altnames=("enp7s0",))
    assert plan.find_wan(Settings(wan="enp7s0"), seen) == "eth1"
    with pytest.raises(Refused, match="eth0 is the WAN device"):
        present(Settings(wan="eth0", ifb="eth0"), seen)


def test_listings_of_nft_versions_are_the_same_table() -> None:
    want = nft_table.normal_table(nft_table.table(SETTINGS))
    listing: list[dict[str, Any]] = json.loads(json.dumps(want))
    listing.sort(key=lambda item: "rule" in item, reverse=True)  # rules stay in their order
    for item in listing:
        for body in item.values():
            body["handle"] = 4
        if "counter" in item:
            item["counter"] |= {"packets": 3, "bytes": 180}
        for kind in {"map", "set"} & item.keys():  # from 1.1.5 on, where there are elements
            item[kind] |= {"count": 1, "elem": ["192.0.2.1"]}
        for statement in item.get("rule", {}).get("expr", []):
            match = statement.get("match")
            if match and match["right"] == 0x51000000:
                match["left"] = match["left"]["&"][0]
                match["right"] = {"prefix": {"addr": 0x51000000, "len": 16}}
    listing.insert(0, {"metainfo": {"version": "1.0.6"}})
    assert nft_table.normal_table(listing) == want
    listing.append({"rule": {"chain": "post", "expr": [{"drop": None}]}})
    assert nft_table.normal_table(listing) != want


def test_early_shaping_changes_the_table_and_what_is_copied_of_a_mark() -> None:
    early = replace(SETTINGS, early_shaping=True)
    plain_want, early_want = desired(SETTINGS, "eth0"), desired(early, "eth0")
    assert [item.key for item in plain_want] == [item.key for item in early_want]
    changed = [new for old, new in zip(plain_want, early_want, strict=True) if old != new]
    table, *filters = changed
    assert isinstance(table, NftTable) and len(filters) == 8
    for item in filters:
        assert isinstance(item, Filter) and item.place[:3] == ("eth0", "ingress", 0)
        assert item.actions == (CopyMark(0x7FFFFFFF, 0x5100),)
    listing = json.loads(json.dumps(table.objects))
    for item in listing:
        if "map" in item:
            item["map"] |= {"flags": "timeout", "elem": [["192.0.2.1", 0xD1000002]], "handle": 7}
    assert nft_table.normal_table(listing) == table.objects


def test_floods_are_paced_only_where_the_service_has_ports_of_its_own() -> None:
    """Among all ports there is SSH."""
    for settings, guarded in (
        (SETTINGS, True),
        (replace(SETTINGS, flood_guard=False), False),
        (replace(SETTINGS, service_ports=()), False),
    ):
        assert ("flood" in json.dumps(nft_table.table(settings))) == guarded


def test_a_libnftables_that_cannot_write_limits_of_sets_does_without_the_flood_guard() -> None:
    old = plain()
    old.nft_version = (1, 0, 2)
    made = present(SETTINGS, old)
    (table,) = [step.target for step in made.operations if isinstance(step.target, NftTable)]
    assert "flood" not in json.dumps(table.objects)
    assert "quic" not in json.dumps(table.objects) + table.text
    assert made.notes == (
        "floods of connections are not paced: that needs libnftables 1.0.6",
        "QUIC connections that move are not followed: that needs libnftables 1.0.6",
    )
    unguarded = replace(SETTINGS, flood_guard=False, follow_quic=False)
    assert present(unguarded, old).notes == ()
    seen = replace(after(unguarded, "eth0", plain()), nft_version=(1, 0, 2))
    assert present(SETTINGS, seen).operations == []


def test_rules_that_are_there_twice_are_not_the_table() -> None:
    """So it is after `nft list ruleset >file; nft -f file`."""
    seen = after(SETTINGS, "eth0", plain())
    assert seen.nft is not None
    seen.nft = NftTable([*seen.nft.objects, *(o for o in seen.nft.objects if "rule" in o)])
    assert texts(present(SETTINGS, seen)) == ["change nft table inet vff_qos"]


def test_what_somebody_chose_below_mq_is_restored_after_what_it_hangs_on() -> None:
    seen = plain()
    mq = Qdisc("eth0", "mq", 0x10000, ROOT_PARENT)
    below = [
        Qdisc("eth0", "pfifo", 0x30000, 0x20001),  # so the kernel may list them
        Qdisc("eth0", "prio", 0x20000, 0x10001),
        Qdisc("eth0", "fq_codel", 0, 0x10002),  # the kernel's own
        Qdisc("eth0", "fq", 0x40000, 0x10003),
        Qdisc("eth1", "fq", 0x50000, 0x10003),
    ]
    seen.qdiscs = [*below, mq]
    made = present(replace(SETTINGS, take_foreign_root=True), seen)
    saved = made.after.devices["eth0"].qdiscs
    assert [qdisc.handle >> 16 for qdisc in saved] == [1, 2, 4, 3]
    lines = texts(absent(SETTINGS, after(SETTINGS, "eth0", seen), made.after))
    assert "restore root qdisc mq 1: of eth0, with 3 qdiscs below it" in lines


@pytest.mark.parametrize(
    ("state", "step", "note"),
    [
        (SysctlState("0", True), True, ""),
        (SysctlState("1", True), False, ""),
        (SysctlState("1", False), False, ""),
        (SysctlState("0", False), False, "read-only here"),
        (SysctlState(None, False), False, "no such parameter"),
    ],
)
def test_a_sysctl_is_set_only_where_it_is_zero_and_can_be(
    state: SysctlState, step: bool, note: str
) -> None:
    seen = after(SETTINGS, "eth0", plain())
    seen.sysctls[TIMESTAMP] = state
    made = present(SETTINGS, seen)
    assert texts(made) == ([f"change sysctl {TIMESTAMP} = 1"] if step else [])
    assert made.after.sysctls == ({TIMESTAMP: "0"} if step else {})
    assert len(made.notes) == bool(note) and note in " ".join(made.notes)


def test_a_sysctl_goes_back_to_what_it_was_unless_somebody_set_it_since() -> None:
    seen = plain()
    seen.sysctls[TIMESTAMP] = SysctlState("0", True)
    made = present(SETTINGS, seen)
    assert made.operations[-1] == ("change", Sysctl(TIMESTAMP, "1"))
    there = after(SETTINGS, "eth0", seen)
    there.sysctls[TIMESTAMP] = SysctlState("1", True)
    again = present(SETTINGS, there, made.after)
    assert again.operations == [] and again.after == made.after
    # After a reboot.
    assert present(SETTINGS, seen, made.after).after.sysctls == {TIMESTAMP: "0"}
    gone = absent(SETTINGS, there, made.after)
    assert texts(gone)[0] == f"restore sysctl {TIMESTAMP} = 0"
    for now, record in (("0", made.after), ("2", made.after), ("1", KernelRecord(0x5100))):
        there.sysctls[TIMESTAMP] = SysctlState(now, True)
        assert not any("sysctl" in line for line in texts(absent(SETTINGS, there, record)))


def test_records_of_earlier_versions_are_read() -> None:
    old = {
        "major": 0x5200,
        "devices": {
            "eth0": {
                "index": 2,
                "qdiscs": [{"kind": "fq", "handle": 7, "parent": 1, "options": "01"}],
                "ingress": None,
            }
        },
    }
    saved = SavedQdisc("fq", 7, 1, "01")
    assert KernelRecord.from_json(old) == KernelRecord(
        0x5200, {"eth0": DeviceRecord(2, (saved,), None)}, {}
    )
    assert (
        KernelRecord.from_json(None)
        == KernelRecord.from_json(KernelRecord().to_json())
        == KernelRecord()
    )
