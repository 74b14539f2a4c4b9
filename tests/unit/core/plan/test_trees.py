"""How many trees there are, what is in them, and which marks name what: without a kernel."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vff_qos.core.htb import LAST_USER_MINOR, PROVISIONAL, UNCLASSIFIED_MINOR, usable_minor
from vff_qos.core.layout import MAX_TREES, Layout, shared_leaf_handle
from vff_qos.core.owners import Minors, Owner
from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.handles import EGRESS
from vff_qos.core.plan.kernel_record import KernelRecord
from vff_qos.core.plan.objects import (
    Filter,
    FwMark,
    Ifb,
    Mq,
    SetQueue,
    SharedClass,
    SharedLeaf,
    SpreadQueues,
    Tree,
)
from vff_qos.core.plan.trees import Trees, decide
from vff_qos.core.settings import UNLIMITED_BPS, Settings, parse_settings
from vff_qos.errors import ConfigError

GBIT = 10**9
KERNEL = (6, 1)


def auto(ceil_bps: int = 100 * GBIT, major: int = 0x5100) -> Settings:
    return Settings(trees_wanted=0, node_ceil_bps=ceil_bps, major=major)


@pytest.mark.parametrize(
    ("settings", "queues", "processors", "kernel", "trees"),
    [
        (Settings(), 8, 8, KERNEL, (1, "")),
        (auto(), 8, 8, KERNEL, (8, "the WAN device uses 8 transmit queues")),
        (auto(), 48, 16, KERNEL, (16, "the node has 16 processors")),
        (auto(), 1, 16, KERNEL, (1, "the WAN device uses one transmit queue")),
        (auto(), 8, 1, KERNEL, (1, "the node has 1 processors")),
        (auto(), 128, 128, KERNEL, (64, "there are never more")),
        (auto(), None, 8, KERNEL,
         (1, "the WAN device does not say how many transmit queues it uses")),
        (auto(5 * GBIT // 2), 8, 8, KERNEL,
         (1, "only one tree can share wan_ceil 2500mbit exactly")),
        (auto(10 * GBIT), 8, 8, KERNEL, (4, "each has at least 2500mbit of 10gbit")),
        (auto(10 * GBIT), 2, 8, KERNEL, (2, "the WAN device uses 2 transmit queues")),
        (auto(4 * GBIT), 8, 8, KERNEL, (1, "each has at least 2500mbit of 4gbit")),
        (auto(major=0x5103), 8, 8, KERNEL,
         (1, "a handle for several trees ends in 00, not as 5103 does")),
        (auto(), 8, 8, (5, 18),
         (1, "kernel 5.18 leads no packet to a queue; that begins with 5.19")),
        (auto(), 8, 8, (5, 19), (8, "the WAN device uses 8 transmit queues")),
        (replace(auto(), trees_wanted=4), 8, 2, KERNEL, (4, "4 are asked for")),
        (replace(auto(), trees_wanted=4), 4, 2, KERNEL, (4, "4 are asked for")),
        (replace(auto(), trees_wanted=4), 2, 8, KERNEL,
         (2, "the WAN device uses 2 transmit queues")),
    ],
)  # fmt: skip
def test_the_number_of_trees_has_a_reason(
    settings: Settings,
    queues: int | None,
    processors: int,
    kernel: tuple[int, int],
    trees: tuple[int, str],
) -> None:
    assert decide(settings, queues, processors, kernel) == Trees(*trees)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trees: 2\nwan_ceil: 1gbit", "s:1: trees: 2 trees cannot share wan_ceil 1gbit: each"),
        ("wan_ceil: 2500mbit\ntrees: 2", "s:2: trees: 2 trees cannot share wan_ceil 2500mbit"),
        ("trees: 2\nhandle: '5103'", "s:1: trees: 2 trees need a handle that ends in 00"),
        ("trees: 0", "s:1: trees: 0 is not auto or a whole number from 1 to 64"),
        ("trees: 65", "s:1: trees: 65 is not auto or a whole number from 1 to 64"),
        ("trees: many", "s:1: trees: 'many' is not auto or a whole number from 1 to 64"),
        ("trees: true", "s:1: trees: True is not auto or a whole number from 1 to 64"),
        ("trees: 2.0", "s:1: trees: 2.0 is not auto or a whole number from 1 to 64"),
    ],
)
def test_trees_that_cannot_be_are_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text.encode(), "s")
    assert str(caught.value).startswith(message)


def test_trees_are_one_unless_somebody_asks() -> None:
    wanted = {
        text: parse_settings(text.encode(), "s").trees_wanted
        for text in ("", "trees: 1\nwan_ceil: 1gbit", "trees: auto\nwan_ceil: 1gbit", "trees: '4'")
    }
    assert list(wanted.values()) == [1, 1, 0, 4]


def test_a_mark_names_queue_and_class() -> None:
    one, four = Layout(0x5100), Layout(0x5100, 4)
    assert [one.mark(m) for m in (2, 3, 0xFFFB)] == [0x51000002, 0x51000003, 0x5100FFFB]
    assert [four.mark(m) for m in (2, 3, 0xFFFB)] == [0x51020002, 0x51030003, 0x5103FFFB]
    assert four.moved(0xD1000003) == 0xD1030003 == PROVISIONAL | four.mark(3)
    assert four.is_ours(0xD1030003) and four.is_ours(0x51000002)
    assert one.is_ours(0xD1000003) and not one.is_ours(0x51030003)
    assert not four.is_ours(0x52000002)
    assert one.moved(0x51030003) == 0x51000003
    assert four.moved(0x51005101) == 0
    assert (str(one), str(four)) == ("5100:", "5100: to 5103:")


def test_no_two_qdiscs_of_a_device_have_the_same_handle() -> None:
    for trees in (1, 2, MAX_TREES):
        objects = desired(Settings(trees=trees), "eth0")
        handles = [tree.major for tree in objects if isinstance(tree, Tree) and tree.dev == "eth0"]
        handles += [0x51FF for root in objects if isinstance(root, Mq) and root.dev == "eth0"]
        handles += [
            shared_leaf_handle(leaf.minor, leaf.major, leaf.tree) >> 16
            for leaf in objects
            if isinstance(leaf, SharedLeaf) and leaf.dev == "eth0"
        ]
        handles += [m for m in range(1 << 16) if usable_minor(0x5100, m, trees)]
        assert len(handles) == len(set(handles))
        # Users' last minor, and what is among them with our tag.
        assert len(handles) > LAST_USER_MINOR - 0x100


def test_who_has_a_minor_that_several_trees_need_gets_another_one() -> None:
    owners = [Owner("a", 0x5102), Owner("b", 0x2A)]
    assert Minors(0x5100, owners).by_key.keys() == {"a", "b"}
    many = Minors(0x5100, owners, trees=2)
    assert many.by_key.keys() == {"b"}
    assert many.take("a", 0.0, 1)[0].minor == 3


def test_with_one_tree_nothing_is_new() -> None:
    objects = desired(Settings(), "eth0", 1500, 8)
    assert not any(isinstance(item, Mq) for item in objects)
    assert not any(isinstance(item, Filter) and item.place.hook == EGRESS for item in objects)
    assert [item for item in objects if isinstance(item, Ifb)] == [Ifb("vffqos0")]
    assert KernelRecord(0x5100).to_json() == {"major": 0x5100, "devices": {}, "sysctls": {}}


def test_each_tree_has_its_part_of_the_ceilings() -> None:
    settings = Settings(
        trees=4, node_ceil_bps=10 * GBIT, unclassified_upload_bps=GBIT,
        unclassified_download_bps=100 * GBIT,
    )  # fmt: skip
    shared = [item for item in desired(settings, "eth0") if isinstance(item, SharedClass)]
    rates = {(item.dev, item.minor, item.tree): item.params.ceil_bps for item in shared}
    for tree in range(4):
        assert rates["eth0", 1, tree] == rates["vffqos0", 1, tree] == 10 * GBIT // 4
        assert rates["vffqos0", UNCLASSIFIED_MINOR, tree] == GBIT // 4
        # What is nobody's never has more than all have.
        assert rates["eth0", UNCLASSIFIED_MINOR, tree] == 10 * GBIT // 4


def test_where_no_limit_is_asked_for_there_is_nothing_to_divide() -> None:
    objects = desired(Settings(trees=4), "eth0")
    shared = [item for item in objects if isinstance(item, SharedClass)]
    assert {item.params.ceil_bps for item in shared} == {UNLIMITED_BPS}


@pytest.mark.parametrize(("queues", "spread"), [(None, 0), (2, 0), (8, 2)])
def test_packets_are_led_to_the_queue_of_their_mark(queues: int | None, spread: int) -> None:
    found = {
        (item.place.dev, item.place.handle): (item.match, item.actions)
        for item in desired(Settings(trees=2), "eth0", 1500, queues)
        if isinstance(item, Filter) and item.place.hook == EGRESS
    }
    for dev in ("eth0", "vffqos0"):
        assert found[dev, 0x51000000] == (FwMark(0xFFFF0000), (SetQueue(0),))
        assert found[dev, 0x51010000] == (FwMark(0xFFFF0000), (SetQueue(1),))
    # What is nobody's must not leave by a queue that has no tree.
    assert [acts for (dev, handle), (_m, acts) in found.items() if handle == 1] == (
        [(SpreadQueues(2),)] if spread else []
    )


def test_the_record_keeps_how_many_there_are_and_why() -> None:
    record = KernelRecord(0x5100, trees=2, why="2 are asked for")
    assert KernelRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
