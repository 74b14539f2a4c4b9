"""Looks at the users again and again, for ``top``, and keeps to what that may cost.

Counters are read often, all else seldom: a look at 50,000 connections costs as much as ten looks at
10,000 users' counters.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..config import Paths, policy_stamp
from ..core.figures import Figures, Moment, natural, select
from ..core.health.findings import Finding, verdict
from ..core.health.rules import judge
from ..core.minute import Minute
from ..core.owners import ACTIVE, Owner
from ..core.pace import Pace
from ..core.policy.model import Policy
from ..core.policy.overrides import counting
from ..errors import QosError
from ..kernel.devices import wan_link
from ..render import display_name, limit, measured
from .facts import Seen, count_classes, look, look_at_classes
from .node import Node
from .status import describe, devices_of


class Due:
    """When something is due again, by `time.monotonic`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.due_s = 0.0

    def took(self, cpu_s: float) -> None:
        """It was done, and took so much time of a core."""
        self.due_s = time.monotonic() + self._pace.gap_s(cpu_s)


class Watch:
    """The node's users: as they were seen last."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.moment = Moment(0)
        self.minute = Minute()
        #: The verdict, as that of ``status``; empty until there was a look.
        self.level, self.reason = "", ""
        self.wan, self.ifb, self.ceil_bps = "", "", 0
        self._node = Node(paths, prints=False)
        self._seen: Seen | None = None
        #: What the verdict is of.
        self.findings: list[Finding] = []
        self._looked: Seen | None = None
        self._counted_s = 0.0
        self._names: list[tuple[Owner, str]] = []
        self._policy: Policy | None = None
        self._policy_stamp: list[Any] = []
        self._reader: threading.Thread | None = None

    def close(self) -> None:
        """Release descriptors."""
        self._node.close()

    # -- looking ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """What is there at once: users and limits.  What is wrong is said by `look`."""
        try:
            self._take(look_at_classes(self._node))
        except QosError as error:
            self.reason = str(error)

    def look(self, spare: bool = False) -> None:
        """At everything: verdict, connections, users, orders.  Raises KernelRefused.

        ``spare``: the last look is forgotten before, but for what the next rates need: nobody sees
        both, and 10,000 users take ten megabytes.
        """
        known = {owner.key: owner for owner in self._seen.owners} if self._seen else {}
        if spare and self._seen is not None:
            last, self._looked = self._seen, None
            self._seen = Seen(last.facts, last.settings, devices=last.devices)
            self._names, self.moment = [], Moment(0, after=self.moment.after)
        self._node.close()
        # Settings, state and policy may be others by now.
        self._node = Node(self.paths, prints=False)
        seen = self._looked = look(self._node, known)
        self.findings = judge(seen.facts)
        self.level, self.reason = verdict(self.findings)
        if seen.settings is None or seen.devices is None:
            self._seen, self._names, self.moment = None, [], Moment(0)
            return
        self._take(seen)

    def _take(self, seen: Seen) -> None:
        settings, devices = seen.settings, seen.devices
        assert settings is not None and devices is not None
        old, self._seen = self._seen, seen
        names = ((owner, display_name(owner.key)) for owner in seen.owners)
        self._names = sorted(
            ((o, name) for o, name in names if o.state == ACTIVE), key=lambda one: natural(one[1])
        )
        self.wan, self.ifb = wan_link(settings).name, settings.ifb
        self.ceil_bps = settings.node_ceil_bps
        moment = seen.moment(time.time())
        if old is not None and old.devices == devices and self.moment.after[0]:
            self._follow(moment, seen.counted_s)
        self._counted_s = seen.counted_s
        self.moment = moment

    def count(self) -> None:
        """Read the counters again: rates, drops, limits.  Raises KernelRefused."""
        seen = self._seen
        if seen is None or seen.devices is None:
            return
        count_classes(self._node, seen)
        moment = seen.moment(time.time())
        self._follow(moment, seen.counted_s)
        self._counted_s, self.moment = seen.counted_s, moment

    def _follow(self, moment: Moment, counted_s: float) -> None:
        """A moment after the last one: the difference gives the rates."""
        moment.before, moment.seconds = self.moment.after, counted_s - self._counted_s
        self.minute.add(moment, counted_s)

    def forget_rates(self) -> None:
        """Nobody looked for a while: the next rates are not those of all that time."""
        self.moment.after = ({}, {})
        self.moment.seconds = 0.0

    def status(self) -> dict[str, Any]:
        """What the last look saw, as ``status --json`` has it, but without the users."""
        assert self._looked is not None
        moment = self.moment if self._looked.is_set_up else None
        return describe(self._node, self._looked, self.findings, moment)

    # -- what is shown ----------------------------------------------------------------------------

    def users(self, patterns: list[str]) -> list[Figures]:
        """Those that a pattern fits, by name."""
        return select(self.moment, self._names, patterns)

    def rates(self, minor: int) -> list[float]:
        """The last minute of one."""
        return self.minute.rates(minor, self._counted_s)

    def plan(self, owner: Owner) -> str:
        """The plan that a user's limits come from at the moment, as far as it is known."""
        if not owner.is_user or self._seen is None:
            return ""
        orders = [o for o in self._seen.overrides if o.email == owner.key]
        named = [o.entry["plan"] for o in counting(orders, time.time()) if "plan" in o.entry]
        if named:
            return str(named[0])
        return (self._policy.plan(owner.key) or "") if self._policy else ""

    # -- the policy -------------------------------------------------------------------------------

    def read_policy(self, wait: bool = False) -> None:
        """Read the policy when its files have changed, beside all else: 10,000 users take 1 s."""
        stamp = policy_stamp(self.paths)
        if stamp != self._policy_stamp and (self._reader is None or not self._reader.is_alive()):
            self._policy_stamp = stamp
            self._reader = threading.Thread(target=self._read_policy, daemon=True)
            self._reader.start()
        if wait and self._reader is not None:
            self._reader.join()

    def _read_policy(self) -> None:
        # A node of its own: SQLite wants each thread to have its connection.
        with Node(self.paths, prints=False) as node:
            try:
                self._policy = node.policy_in_force
            except QosError:  # the verdict says so
                self._policy = None


def headline(watch: Watch) -> str:
    """The verdict in one sentence."""
    if not watch.level:
        return watch.reason or "looking at the node"
    return f"{watch.level}: {watch.reason or 'nothing is wrong'}"


def traffic(watch: Watch) -> str:
    """What passes the node."""
    if not watch.wan:
        return ""
    moment = watch.moment
    devices = devices_of(moment)
    up, down = (measured(devices[name]["rate_bps"]) for name in ("upload", "download"))
    return (
        f"down {down} on {watch.wan}, up {up} on {watch.ifb}, ceiling {limit(watch.ceil_bps)}; "
        f"{sum(moment.flows.values())} connections"
    )
