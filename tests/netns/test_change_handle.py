"""A node whose handle, IFB name or WAN device is changed in its settings: what `make qos` meets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.vff.qos.plugins.modules import qos_preflight

from vff_qos.commands import bootstrap
from vff_qos.core.plan.handles import ALIAS
from vff_qos.core.settings import Settings
from vff_qos.errors import KernelRefused, Refused

from .connections import connection, marks, preflight
from .harness import WAN, Memory, Module, root_of, run, snapshot

OLD, NEW = 0x5100, 0x6200


def test_the_preflight_and_the_agent_know_our_ifb_by_the_same_alias() -> None:
    assert qos_preflight.ALIAS == ALIAS


def test_another_handle_takes_tree_and_connections_along(settings: Settings) -> None:
    before, memory = snapshot(), Memory()
    bootstrap.reconcile(settings, memory)
    connection(1, 0x5100002A)
    connection(2, 0xD100002B)  # provisional
    connection(3, 0x51006200)  # a minor that the new tree cannot have
    connection(4, 0x00000007)  # other software's
    changed = replace(settings, major=NEW, ifb="uploads0")
    assert preflight(changed) == []
    assert "move the marks of 3 connections from 5100: to 6200:" in (
        bootstrap.reconcile(changed, memory)
    )
    assert root_of(WAN) == root_of("uploads0") == ("tbf 6201:" if settings.split else "htb 6200:")
    assert "vffqos0" not in run("ip", "-br", "link")
    assert marks() == {1: 0x6200002A, 2: 0xE200002B, 3: 0, 4: 7}
    assert preflight(changed) == []
    assert bootstrap.reconcile(changed, memory) == []
    bootstrap.remove(changed, memory)
    assert snapshot() == before


def test_a_suspension_ends_with_the_marks_of_the_new_handle(settings: Settings) -> None:
    memory = Memory()
    bootstrap.reconcile(settings, memory)
    waiting = [[2, "00", 0x5100002A, 1, 0], [2, "00", 0x51006201, 2, 0]]
    memory.set_value("suspended", {"since": 1.0, "flows": waiting})
    bootstrap.reconcile(replace(settings, major=NEW), memory)
    assert [flow[2] for flow in memory.get_value("suspended")["flows"]] == [0x6200002A, 0]


def test_a_lost_state_and_another_handle_at_once(settings: Settings) -> None:
    """Our IFB says which handle the tree has."""
    bootstrap.reconcile(settings, Memory())
    connection(1, 0x5100002A)
    changed, memory = replace(settings, major=NEW), Memory()
    assert preflight(changed) == []
    bootstrap.reconcile(changed, memory)
    assert root_of(WAN) == ("tbf 6201:" if settings.split else "htb 6200:")
    assert marks()[1] == 0x6200002A
    assert bootstrap.reconcile(changed, memory) == []


def test_without_state_and_without_our_ifb_it_is_somebodys_tree(settings: Settings) -> None:
    bootstrap.reconcile(settings, Memory())
    run("ip", "link", "del", "vffqos0")
    changed = replace(settings, major=NEW)
    (problem,) = preflight(changed)
    assert "root qdisc that somebody else configured" in problem
    with pytest.raises(Refused, match="which somebody set"):
        bootstrap.reconcile(changed, Memory())


@pytest.mark.parametrize("name", ["впн0", "网0"])
def test_the_wan_device_and_the_ifb_may_have_names_outside_ascii(
    settings: Settings, name: str
) -> None:
    run("ip", "link", "set", WAN, "down")
    run("ip", "link", "set", WAN, "name", name)
    run("ip", "link", "set", name, "up")
    before, memory = snapshot()["qdiscs"], Memory()
    there = replace(settings, wan=name, ifb="загр")
    assert preflight(there) == []
    bootstrap.reconcile(there, memory)
    assert root_of(name) == root_of("загр") == ("tbf 5101:" if settings.split else "htb 5100:")
    assert bootstrap.reconcile(there, memory) == []
    bootstrap.remove(there, memory)
    assert snapshot()["qdiscs"] == before


def test_a_part_that_the_kernel_lacks_is_named(settings: Settings) -> None:
    """Nothing else says it where the lists of modules are silent."""
    missing, problems = qos_preflight.try_features(Module(), ["sch_cake"])
    assert not problems
    if not missing:
        pytest.skip("this kernel lacks nothing")
    with pytest.raises(KernelRefused, match=r"the kernel lacks sch_cake, or cannot load it \(inst"):
        bootstrap.reconcile(replace(settings, leaf="cake"), Memory())


def test_a_long_alternative_name_stands_for_the_wan_device(settings: Settings) -> None:
    run("ip", "link", "property", "add", "dev", WAN, "altname", "enx0123456789ab-uplink")
    there, memory = replace(settings, wan="enx0123456789ab-uplink"), Memory()
    assert preflight(there) == []
    bootstrap.reconcile(there, memory)
    assert bootstrap.reconcile(there, memory) == []
    assert root_of(WAN) == ("tbf 5101:" if settings.split else "htb 5100:")
