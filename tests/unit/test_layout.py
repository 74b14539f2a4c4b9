"""Plans: from settings and what is there to steps, without a kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vff_qos.core.htb import shared_class
from vff_qos.core.plan import layout
from vff_qos.core.plan.layout import Filter, Link, Observed, Qdisc
from vff_qos.core.settings import Settings
from vff_qos.errors import Refused

ROOT, INGRESS = layout.ROOT_PARENT, layout.INGRESS_PARENT
SETTINGS = Settings(wan="eth0", service_ports=((443, 443), (20000, 20100)))


def links(*names: str) -> dict[str, Link]:
    names = ("lo", *names)
    return {name: Link(i, "", "", True, 1000) for i, name in enumerate(names, 1)}


def plain() -> Observed:
    """A host with two interfaces and the kernel's defaults."""
    roots = [Qdisc("eth0", "fq_codel", 0, ROOT), Qdisc("eth1", "noqueue", 0, ROOT)]
    return Observed(links("eth0", "eth1"), "eth0", roots)


def present(settings: Settings, observed: Observed, recorded: Any = None) -> layout.Plan:
    return layout.present(settings, observed, recorded or {}, lambda a, b: a == b)


def after(settings: Settings, wan: str, base: Observed, majors: int | None = None) -> Observed:
    """What the kernel shows when every desired object is there."""
    major = majors or settings.major
    seen = Observed(dict(base.links), base.default, [], dict(base.filters), {}, None)
    seen.qdiscs = [q for q in base.qdiscs if (q.dev, q.parent) != (wan, ROOT)]
    for key, spec in layout.desired(settings, wan).items():
        kind, dev = key[0], key[1]
        if kind == "link":
            seen.links[dev] = Link(50, *spec)
        elif kind == "nft":
            seen.nft = [{"metainfo": {}}, *spec]
        elif kind == "root":
            above = ROOT
            if spec[2]:
                above = spec[0] + 1 << 16 | 1
                limit = spec[2] * layout.SPLIT_LIMIT
                seen.qdiscs.append(Qdisc(dev, "tbf", spec[0] + 1 << 16, ROOT, limit=limit))
            seen.qdiscs.append(Qdisc(dev, "htb", spec[0] << 16, above, b"", spec[1]))
        elif kind == "class":
            seen.classes.setdefault((dev, major), {})[key[2]] = spec
        elif kind == "leaf":
            seen.qdiscs.append(Qdisc(dev, spec, key[2] << 16, major << 16 | key[2]))
        elif kind == "ingress" and not seen.ingress(dev):
            seen.qdiscs.append(Qdisc(dev, "clsact", 0xFFFF0000, INGRESS))
        elif kind == "filter":
            seen.filters[key] = spec
    return seen


def texts(plan: layout.Plan) -> list[str]:
    return [step.text for step in plan.operations]


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
    plan = present(SETTINGS, plain())
    again = present(SETTINGS, after(SETTINGS, "eth0", plain()), plan.after)
    assert again.operations == []
    assert again.after == plan.after
    assert json.loads(json.dumps(plan.after)) == plan.after


def test_packets_are_split_above_the_tree_and_frames_follow_the_mtu() -> None:
    split = replace(SETTINGS, split=True)
    text = "root qdisc htb 5100: of eth0, below a tbf that splits packets above {} bytes"
    assert f"add {text.format(1536)}" in texts(present(split, plain()))
    seen = after(split, "eth0", plain())
    assert present(split, seen, {}).operations == []
    # The kill switch takes the limits away, and leaves the tree as it is.
    assert {step.key[0] for step in present(split.lifted(), seen, {}).operations} <= {"class"}
    seen.links["eth0"] = seen.links["eth0"]._replace(mtu=9000)
    assert f"change {text.format(9036)}" in texts(present(split, seen, {}))
    assert not any(step.startswith("change") for step in texts(present(SETTINGS, seen, {})))
    assert f"remove {text.format(1536)}" in texts(present(SETTINGS, seen, {}))


def test_live_classes_of_users_are_not_touched() -> None:
    seen = after(SETTINGS, "eth0", plain())
    seen.classes["eth0", 0x5100][0x2A] = shared_class(10**6)
    seen.classes["eth0", 0x5100][1] = shared_class(10**9)
    lines = texts(present(SETTINGS, seen, {}))
    assert lines == ["change class :1 of eth0: node ceiling, 100gbit"]


def test_other_ports_are_added_before_old_ones_go() -> None:
    seen = after(SETTINGS, "eth0", plain())
    lines = texts(present(replace(SETTINGS, service_ports=((8443, 8443),)), seen, {}))
    assert [line.split()[0] for line in lines] == ["add"] * 4 + ["remove"] * 8
    lines = texts(present(replace(SETTINGS, service_ports=()), seen, {}))
    assert lines[:2] == [
        "add ingress filter 20740 of eth0: ip all ports",
        "add ingress filter 20741 of eth0: ipv6 all ports",
    ]


def test_removal_unredirects_first_and_removes_the_ifb_last() -> None:
    plan = present(SETTINGS, plain())
    gone = layout.absent(SETTINGS, after(SETTINGS, "eth0", plain()), plan.after)
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
    assert gone.after == {}
    assert layout.absent(SETTINGS, plain(), {}).operations == []


def test_foreign_root_is_refused_or_recorded_and_restored() -> None:
    foreign = plain()
    foreign.qdiscs[0] = Qdisc("eth0", "fq", 0x80010000, ROOT, b"\1\2")
    with pytest.raises(Refused, match="the root qdisc of eth0 is fq 8001:, which somebody set"):
        present(SETTINGS, foreign)
    plan = present(replace(SETTINGS, take_foreign_root=True), foreign)
    assert plan.before["devices"]["eth0"]["qdiscs"] == [
        {"kind": "fq", "handle": 0x80010000, "parent": ROOT, "options": "0102"}
    ]
    # Once it is ours, consent is no longer needed.
    seen = after(SETTINGS, "eth0", foreign)
    assert present(SETTINGS, seen, plan.after).operations == []
    lines = texts(layout.absent(SETTINGS, seen, plan.after))
    at = lines.index("remove root qdisc htb 5100: of eth0")
    assert lines[at + 1] == "restore root qdisc fq 8001: of eth0"


def test_clsact_of_others_stays() -> None:
    theirs = plain()
    theirs.qdiscs.append(Qdisc("eth0", "clsact", 0xFFFF0000, INGRESS))
    plan = present(SETTINGS, theirs)
    assert not any("clsact" in line for line in texts(plan))
    gone = layout.absent(SETTINGS, after(SETTINGS, "eth0", theirs), plan.after)
    assert not any("clsact" in line for line in texts(gone))


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_our_clsact_stays_while_others_have_filters_in_it(hook: str) -> None:
    plan = present(SETTINGS, plain())
    seen = after(SETTINGS, "eth0", plain())
    seen.filters["filter", "eth0", hook, 0, 7, "all", 1] = Filter("bpf", ("?",))
    assert not any("clsact" in line for line in texts(layout.absent(SETTINGS, seen, plan.after)))


def test_filters_of_others_are_never_removed_and_a_taken_preference_is_refused() -> None:
    seen = plain()
    seen.qdiscs.append(Qdisc("eth0", "ingress", 0xFFFF0000, INGRESS))
    seen.filters["filter", "eth0", "ingress", 0, 10, "ip", 1] = Filter("flower", (6, 22, 22))
    assert not any(line.startswith("remove") for line in texts(present(SETTINGS, seen)))
    seen.filters["filter", "eth0", "ingress", 0, 20736, "ip", 1] = Filter("u32", ("?",))
    with pytest.raises(Refused, match="holds preference 20736"):
        present(SETTINGS, seen)


def test_wan_that_moves_leaves_nothing_behind() -> None:
    old = present(SETTINGS, plain())
    plan = present(replace(SETTINGS, wan="eth1"), after(SETTINGS, "eth0", plain()), old.after)
    lines = texts(plan)
    assert lines.index("add root qdisc htb 5100: of eth1") < lines.index(
        "remove root qdisc htb 5100: of eth0"
    )
    assert "remove ingress qdisc clsact of eth0" in lines
    assert not any("vffqos0" in line and "device" in line for line in lines)
    assert set(plan.before["devices"]) == {"eth0", "eth1"}
    assert set(plan.after["devices"]) == {"eth1"}


def test_ifb_that_is_renamed() -> None:
    seen = after(SETTINGS, "eth0", plain())
    lines = texts(present(replace(SETTINGS, ifb="up0"), seen, {}))
    assert lines[0] == "add ifb device up0"
    assert lines[-1] == "remove ifb device vffqos0"
    assert "remove ingress filter 1 of eth0: packets with our mark to vffqos0" in lines


def test_ifb_name_taken_by_something_else() -> None:
    seen = plain()
    for kind, alias, up in (("dummy", "", True), ("ifb", "", True), ("ifb", "other", False)):
        seen.links["vffqos0"] = Link(9, kind, alias, up, 32)
        with pytest.raises(Refused, match="vffqos0 exists and is not ours"):
            present(SETTINGS, seen)
    seen.links["vffqos0"] = Link(9, "ifb", "", False, 32)  # a creation cut short
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
    at = next(i for i, q in enumerate(seen.qdiscs) if (q.dev, q.parent) == ("eth0", ROOT))
    seen.qdiscs[at] = seen.qdiscs[at]._replace(default=0x10)
    assert texts(present(SETTINGS, seen, {})) == [
        "remove root qdisc htb 5100: of eth0",
        "add root qdisc htb 5100: of eth0",
        "add class :1 of eth0: node ceiling, 100gbit",
        "add class :fffe of eth0: unclassified traffic, 100gbit",
        "add leaf qdisc fq_codel of class :fffe of eth0",
        "add filter of eth0: class from mark",
    ]


def test_a_filter_that_was_changed_is_put_right() -> None:
    seen = after(SETTINGS, "eth0", plain())
    key = ("filter", "eth0", "ingress", 0, 20736, "ip", 443 << 16 | 443)
    seen.filters[key] = Filter("flower", (6, 443, 443), (("drop", "?"),))
    assert [line.split()[0] for line in texts(present(SETTINGS, seen, {}))] == ["remove", "add"]


def test_lost_record_still_removes_an_empty_clsact() -> None:
    lines = texts(layout.absent(SETTINGS, after(SETTINGS, "eth0", plain()), {}))
    assert "remove ingress qdisc clsact of eth0" in lines


def test_record_of_a_device_that_was_replaced_is_not_believed() -> None:
    old = present(SETTINGS, plain()).after
    new = plain()
    new.links["eth0"] = new.links["eth0"]._replace(ifindex=77)
    new.qdiscs.append(Qdisc("eth0", "clsact", 0xFFFF0000, INGRESS))
    assert present(SETTINGS, new, old).after["devices"]["eth0"]["ingress"] is False


def test_wan_is_found_or_named_in_one_sentence() -> None:
    seen = plain()
    assert layout.find_wan(Settings(), seen) == "eth0"
    seen.default = None
    with pytest.raises(Refused, match="auto finds no default route; set wan to one of: eth0, eth1"):
        layout.find_wan(Settings(), seen)
    with pytest.raises(Refused, match="interface eth7 does not exist; there are: eth0, eth1"):
        layout.find_wan(Settings(wan="eth7"), seen)
    seen.links["eth1"] = seen.links["eth1"]._replace(altnames=("enp7s0",))
    assert layout.find_wan(Settings(wan="enp7s0"), seen) == "eth1"
    with pytest.raises(Refused, match="eth0 is the WAN device"):
        present(Settings(wan="eth0", ifb="eth0"), seen)


def test_listings_of_nft_versions_are_the_same_table() -> None:
    want = layout.normal_table(layout.table(SETTINGS))
    listing: list[dict[str, Any]] = json.loads(json.dumps(list(reversed(want))))
    for item in listing:
        for body in item.values():
            body["handle"] = 4
        for statement in item.get("rule", {}).get("expr", []):
            if match := statement.get("match"):
                match["left"] = match["left"]["&"][0]
                match["right"] = {"prefix": {"addr": 0x51000000, "len": 16}}
    listing.insert(0, {"metainfo": {"version": "1.0.6"}})
    assert layout.normal_table(listing) == want
    listing.append({"rule": {"chain": "post", "expr": [{"drop": None}]}})
    assert layout.normal_table(listing) != want


def test_early_shaping_changes_the_table_and_what_is_copied_of_a_mark() -> None:
    early = replace(SETTINGS, early_shaping=True)
    plain_want, early_want = layout.desired(SETTINGS, "eth0"), layout.desired(early, "eth0")
    assert list(plain_want) == list(early_want)
    changed = [key for key in plain_want if plain_want[key] != early_want[key]]
    assert {key[:4] for key in changed} == {("nft", "vff_qos"), ("filter", "eth0", "ingress", 0)}
    assert {early_want[key].actions[0][1] for key in changed[1:]} == {0x7FFFFFFF}
    listing = json.loads(json.dumps(early_want["nft", "vff_qos"]))
    for item in listing:
        if "map" in item:
            item["map"] |= {"flags": "timeout", "elem": [["192.0.2.1", 0xD1000002]], "handle": 7}
    assert layout.normal_table(listing) == early_want["nft", "vff_qos"]
