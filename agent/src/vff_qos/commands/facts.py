"""What is seen of this node, for `core.health.rules`: read from the kernel and the files, once."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from .. import __version__
from ..config import (
    Paths,
    identities_stamp,
    load_identities,
    load_policy,
    load_settings,
    policy_stamp,
    settings_stamp,
)
from ..core.claims.trust import address_key
from ..core.class_table import ClassTable
from ..core.figures import Moment, penalties
from ..core.flows.ends import unmapped
from ..core.health.report import Report
from ..core.health.rules import Facts
from ..core.htb import CEIL_MINOR, MINOR_MASK
from ..core.names import PLAIN
from ..core.owners import ACTIVE, RESTRICTED_KEY, Owner
from ..core.policy.overrides import Override
from ..core.settings import Settings
from ..disabled import read_record
from ..errors import ConfigError, Refused
from ..host_facts import ask_connections, look_at_host, ports_text
from ..kept import kept_settings, with_trees
from ..kernel.devices import shaping_devices
from ..kernel.packed.conntrack import Conntrack
from ..kernel.tcpmem import TcpMemory
from ..name_hashing import mode_of
from ..render import display_name
from ..runfile import read_delivery, read_report
from ..state import STATIC_MINORS, StateError
from .node import Node

_UNIT = "vff-qos-follow.service"
#: A file that was changed so lately may still be read.
_GRACE_S = 3.0


class Counted(NamedTuple):
    """What a collection has read under the lock: nobody need read it again.

    ``up`` and ``down``: the minors of the classes on (IFB, WAN); ``flows``: {minor: live flows}.
    """

    owners: list[Owner]
    up: Container[int]
    down: Container[int]
    flows: Mapping[int, int]


@dataclass
class Seen:
    """A look at a node: what the rules judge, and what is shown beside it."""

    facts: Facts
    settings: Settings | None = None
    #: {minor: class} on (IFB, WAN).
    up: ClassTable = field(default_factory=ClassTable)
    down: ClassTable = field(default_factory=ClassTable)
    devices: tuple[int, int] | None = None
    #: When the counters were read, by CLOCK_MONOTONIC.
    counted_s: float = 0.0
    #: {minor: live flows}, and {minor: from how many places; an IPv6 /64 is one}.
    flows: dict[int, int] = field(default_factory=dict)
    addresses: dict[int, int] = field(default_factory=dict)
    #: Those from whose places there are restricted flows, too.
    in_doubt: frozenset[int] = frozenset()
    owners: list[Owner] = field(default_factory=list)
    #: Minors of services and networks.
    static: frozenset[int] = frozenset()
    overrides: list[Override] = field(default_factory=list)
    tcp_memory: TcpMemory | None = None

    def moment(self, now_s: float) -> Moment:
        """What was seen as figures, still without rates: counters were read but once."""
        assert self.settings is not None
        before = self.up.sent(), self.down.sent()
        return Moment(
            self.settings.major,
            (self.up, self.down),
            before,
            before,
            flows=self.flows,
            addresses=self.addresses,
            in_doubt=self.in_doubt,
            penalties=penalties(self.overrides, now_s),
            trees=self.settings.trees,
        )

    @property
    def is_set_up(self) -> bool:
        """Whether there are settings, and devices of ours."""
        return self.settings is not None and self.devices is not None

    @property
    def report(self) -> Report | None:
        """What the follower tells."""
        return self.facts.report


def look_at_classes(node: Node) -> Seen:
    """Only the users and their classes, without a verdict: what is there at once.

    Raises KernelRefused, StateError, ConfigError, Refused.
    """
    settings = node.settings_in_force
    seen = Seen(Facts(time.time(), read_report(node.paths.run_dir), __version__), settings)
    seen.owners = node.state.owners()
    seen.devices = shaping_devices(settings)
    count_classes(node, seen)
    return seen


def count_classes(node: Node, seen: Seen) -> None:
    """Read the classes of a node that is set up, with their counters.  Raises KernelRefused."""
    assert seen.settings is not None and seen.devices is not None
    layout = seen.settings.layout
    seen.up, seen.down = (node.tc.class_table(index, *layout) for index in seen.devices)
    seen.counted_s = time.monotonic()


def look(node: Node, known: Mapping[str, Owner] | None = None) -> Seen:
    """Look at everything once; ``known``: owners of before, as for `State.owners`.

    Raises KernelRefused; what else fails is a fact.
    """
    seen = _begin_look(node)
    try:
        state = node.state
        seen.owners = sorted(state.owners(known), key=lambda owner: owner.key)
        seen.static = frozenset(state.get_value(STATIC_MINORS) or ())
        seen.overrides = [o for o in state.overrides() if not o.ends_by(seen.facts.now_s)]
    except StateError as error:
        seen.facts.state = str(error)
    _look_around(node, seen)
    _look_at_kernel(node, seen)
    return seen


def look_after(node: Node, counted: Counted) -> Facts:
    """A look of the collection's: of owners, classes and connections what it has ``counted``.

    The connections' addresses and those without a mark are left out.  Raises as `look`.
    """
    seen = _begin_look(node)
    _look_around(node, seen)
    if _find_devices(node, seen):
        seen.facts.marked_flows = sum(counted.flows.values())
        _look_for_classes(seen.facts, counted)
    return seen.facts


def _begin_look(node: Node) -> Seen:
    facts = Facts(time.time(), read_report(node.paths.run_dir), __version__)
    if record := read_record(node.paths):
        facts.disabled = str(record)
    try:
        facts.state = node.state.trouble
        facts.suspended = node.state.get_value("suspended") is not None
    except StateError as error:
        facts.state = str(error)
    return Seen(facts)


def _look_around(node: Node, seen: Seen) -> None:
    """At all but the users."""
    facts = seen.facts
    _look_at_files(node, seen)
    if seen.settings is not None and seen.settings.report_url:
        facts.delivery = read_delivery(node.paths.run_dir)
    if facts.report is None:
        facts.unit = _unit_state()
    seen.tcp_memory = look_at_host(facts)


def _look_at_files(node: Node, seen: Seen) -> None:
    facts, report = seen.facts, seen.facts.report
    try:
        seen.settings = with_trees(load_settings(node.paths), node.any_state)
    except ConfigError as error:
        facts.settings_problem = str(error)
        if "state" in node.__dict__:
            seen.settings = kept_settings(node.state)
            if seen.settings is not None:
                seen.settings = with_trees(seen.settings, node.state)
    if report is not None and not facts.settings_problem:
        facts.settings_are_current = not report.settings or _is_current(
            report.settings, settings_stamp(node.paths)
        )
    _look_at_identities(node, seen)
    stamp = policy_stamp(node.paths)
    if report is not None and report.policy == stamp:
        return
    if report is not None and report.policy_refused:
        facts.policy_problem = report.policy_refused
        return
    problem = _policy_error(node.paths, str(stamp))
    if problem is not None:
        plain = "state" not in node.__dict__ or mode_of(node.state) == PLAIN
        facts.policy_problem = str(problem) if plain else problem.nameless()
    else:
        facts.policy_is_current = report is None or _is_current(report.policy, stamp)


@lru_cache(maxsize=1)
def _policy_error(paths: Paths, _stamp: str) -> ConfigError | None:
    """What is wrong with the policy; once for each: whoever looks again and again, as `top` does,
    need not read 10,000 users each time."""
    try:
        load_policy(paths)
    except ConfigError as error:
        return error
    return None


def _look_at_identities(node: Node, seen: Seen) -> None:
    facts, report, settings = seen.facts, seen.facts.report, seen.settings
    stamp = identities_stamp(node.paths)
    if settings is None or (report is not None and report.identities == stamp):
        return
    if report is not None and report.identities_refused:
        facts.identities_problem = report.identities_refused
        return
    try:
        load_identities(node.paths, settings)
    except ConfigError as error:
        facts.identities_problem = str(error)
    else:
        facts.identities_are_current = (
            report is None or not report.identities or _is_current(report.identities, stamp)
        )


def _is_current(read: list[Any], stamp: list[Any]) -> bool:
    """Whether a file is as it was read; one that has just been changed counts."""
    if read == stamp:
        return True
    files = stamp if stamp and isinstance(stamp[0], list) else [stamp]
    changed_ns = max((file[4] for file in files if len(file) == 5), default=0)
    return time.time() - changed_ns / 1e9 < _GRACE_S


def _find_devices(node: Node, seen: Seen) -> bool:
    """Whether there are settings and the devices that they name."""
    facts, settings = seen.facts, seen.settings
    if settings is None:
        facts.not_set_up = facts.settings_problem
        return False
    facts.service_ports = ports_text(settings)
    try:
        seen.devices = shaping_devices(settings)
    except Refused as error:
        facts.not_set_up = str(error)
        return False
    return True


def _look_at_kernel(node: Node, seen: Seen) -> None:
    if not _find_devices(node, seen):
        return
    facts, settings = seen.facts, seen.settings
    assert settings is not None
    count_classes(node, seen)
    conntrack = Conntrack()
    try:
        doubted = {o.minor for o in seen.owners if o.key.startswith(RESTRICTED_KEY)}
        conntrack.sources(
            settings.layout.tag, settings.layout.mask, lambda found: _sum_up(seen, found, doubted)
        )
        facts.marked_flows = sum(seen.flows.values())
        ask_connections(facts, conntrack, settings)
    finally:
        conntrack.close()
    _look_for_classes(facts, Counted(seen.owners, seen.up, seen.down, seen.flows))


def _look_for_classes(facts: Facts, counted: Counted) -> None:
    """What is missing in the trees, or they themselves."""
    owners, up, down, flows = counted
    if CEIL_MINOR not in up or CEIL_MINOR not in down:
        facts.not_set_up = "the HTB trees are missing"
    without = [
        owner
        for owner in owners
        if owner.state == ACTIVE and not (owner.minor in up and owner.minor in down)
    ]
    busy = sorted(
        (owner for owner in without if flows.get(owner.minor)), key=lambda owner: owner.key
    )
    facts.busy_without_class = [display_name(owner.key) for owner in busy]
    facts.idle_without_class = len(without) - len(busy)


def _sum_up(seen: Seen, found: Iterable[tuple[int, bytes]], doubted: set[int]) -> None:
    """Count flows by class, while they are read, and the places that they come from.

    A set for each of 10,000 users would take some megabytes: there is one of all.
    """
    flows: dict[int, int] = {}
    places: set[bytes] = set()
    for mark, address in found:
        minor = mark & MINOR_MASK
        flows[minor] = flows.get(minor, 0) + 1
        places.add(minor.to_bytes(2, "big") + address_key(unmapped(address)))
    addresses: dict[int, int] = {}
    in_doubt = {place[2:] for place in places if int.from_bytes(place[:2], "big") in doubted}
    of_doubt = set()
    for place in places:
        minor = int.from_bytes(place[:2], "big")
        addresses[minor] = addresses.get(minor, 0) + 1
        if place[2:] in in_doubt:
            of_doubt.add(minor)
    seen.flows, seen.addresses, seen.in_doubt = flows, addresses, frozenset(of_doubt)


def _unit_state() -> str:
    """What systemd says of the follower; empty where there is no systemd, or no such unit."""
    if not os.path.isdir("/run/systemd/system"):
        return ""
    import subprocess  # takes 2 ms, and is asked for where no follower runs only

    done = subprocess.run(
        ["systemctl", "show", _UNIT, "--property=LoadState,ActiveState,SubState,Result"],
        capture_output=True, text=True, check=False, timeout=5,
    )  # fmt: skip
    shown = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if shown.get("LoadState") in (None, "not-found"):
        return ""
    return (
        f"{_UNIT} is {shown.get('LoadState')}, {shown.get('ActiveState')} "
        f"({shown.get('SubState')}), result {shown.get('Result')}"
    )
