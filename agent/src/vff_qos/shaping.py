"""The users' classes: what they should be, what they are, and how they get there.

The agent and the commands that change a limit at once use the same code, each under the lock.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from itertools import compress

from .core.htb import (
    CEIL_MINOR,
    PARKED_PRIO,
    ClassState,
    HtbClass,
    NodeCapacity,
    guarantee_shift,
    leaf_target_us,
    same_class,
    user_class,
)
from .core.owners import ACTIVE, RESTRICTED_KEY, Owner
from .core.policy.model import Limits, Policy, lowest_of
from .core.policy.overrides import Override, Overrides
from .core.settings import Settings
from .cutting import Cuts
from .errors import KernelRefused
from .kernel.packed.tc import (
    ClassKey,
    Request,
    Tc,
    add_class,
    add_leaf,
    change_class,
    change_leaf,
    delete_leaf,
)

Both = tuple[HtbClass, HtbClass]
#: {minor: parameters} on (IFB, WAN), as the kernel has them.
Listed = tuple[dict[int, HtbClass], dict[int, HtbClass]]
#: A leaf that is not the same on both devices.
_MIXED = "?"
#: Most users share the limits of a few plans.
_MAX_PARAMS = 1_024


class Classes:
    """The classes of all users on both devices.  The caller holds the lock."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        tc: Tc,
        devices: tuple[int, int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``devices`` are the interface indexes of (IFB, WAN): upload and download."""
        self.devices = devices
        self.policy = policy
        self.overrides = Overrides((), policy)
        self._settings, self._tc, self._clock = settings, tc, clock
        self._layout = settings.layout
        self._node = NodeCapacity(settings.tree_ceil_bps, policy.max_weight)
        self.cuts = Cuts(self._layout)
        self._params: dict[tuple[Limits, int, NodeCapacity], Both] = {}
        #: Whose class is there, as far as known: a byte a minor takes a tenth of a set of 10,000.
        self.made = bytearray(1 << 16)
        # Leaves that are not the node's: what the kernel has there, empty for none.
        self._other_leaf: dict[int, str] = {}
        self._learned = False
        self._promised: dict[int, tuple[Owner, int, int]] = {}
        # By tree, (upload, download).
        self._promises = [[0, 0] for _tree in self._layout.majors]

    # -- what should be -------------------------------------------------------------------------

    def set_policy(self, policy: Policy) -> None:
        """New rules; the kernel is not touched."""
        self.policy = policy
        self.overrides = Overrides(self.overrides.all(), policy)
        self._node = self._node._replace(max_weight=policy.max_weight)

    def set_overrides(self, overrides: Iterable[Override]) -> None:
        """What stands above the policy; the kernel is not touched."""
        self.overrides = Overrides(overrides, self.policy)

    def load(self, owners: Iterable[Owner], made: set[int]) -> list[Owner]:
        """All owners, and the minors that have classes on both devices.

        Returns owners whose guarantee changes because others came or went.
        """
        self.cuts.forget()
        self.made = bytearray(1 << 16)
        self._note_made(made)
        self._other_leaf = {m: leaf for m, leaf in self._other_leaf.items() if m in made}
        return self.recount(owners)

    def recount(self, owners: Iterable[Owner]) -> list[Owner]:
        """Add up the guarantees of ``owners`` anew; returns owners whose guarantee changes."""
        before = self._node.shift
        self._promised.clear()
        self._promises = [[0, 0] for _tree in self._layout.majors]
        if self.policy.names_guarantees or self.overrides.name_guarantees:
            self._promise(owner for owner in owners if self.made[owner.minor])
        self._node = self._node._replace(shift=self._shift())
        return [] if self._node.shift == before else self._promised_owners()

    def has(self, minor: int) -> bool:
        """Whether the class is there on both devices, as far as is known."""
        return bool(self.made[minor])

    def limits_of(self, email: str) -> Limits:
        """The limits of an email, overrides included."""
        return self.overrides.limits(email, self._clock())

    def limits(self, owner: Owner) -> Limits:
        """The limits of whoever owns a minor."""
        if owner.key.startswith(RESTRICTED_KEY):
            return lowest_of([self.policy.default, Limits(owner.up_bps, owner.down_bps)])
        if not owner.is_user:
            return self.policy.default
        return self.limits_of(owner.key)

    def mark(self, owner: Owner) -> int:
        """The mark of an owner's flows, which is the class's number, too."""
        return self._layout.mark(owner.minor)

    def rule(self, email: str) -> str:
        """What decides about an email, in a few words."""
        rule = self.policy.rule(email)
        plan = rule.layer.get("plan", self.policy.default_layer.get("plan"))
        name = {"user": "an entry of its own", "pattern": f"pattern {rule.name}"}.get(
            rule.kind, "default"
        )
        name += f", plan {plan}" if plan is not None else ""
        live = self.overrides.in_force(email, self._clock())
        return f"a temporary override above {name}" if live else name

    def params(self, owner: Owner) -> Both:
        """Class parameters on (IFB, WAN)."""
        return self.params_of(self.limits(owner), 0 if owner.state == ACTIVE else PARKED_PRIO)

    def params_of(self, limits: Limits, prio: int = 0) -> Both:
        """Class parameters that ``limits`` give on (IFB, WAN)."""
        key = limits, prio, self._node
        if key not in self._params:
            if len(self._params) >= _MAX_PARAMS:
                self._params.clear()
            self._params[key] = self._compute(limits, prio)
        return self._params[key]

    def _compute(self, limits: Limits, prio: int) -> Both:
        node = self._node
        up, down = (
            user_class(
                min(limit_bps or node.ceil_bps, node.ceil_bps),
                limits.weight,
                prio,
                limits.guaranteed_bps,
                limits.burst_bytes,
                node,
            )
            for limit_bps in (limits.upload_bps, limits.download_bps)
        )
        return up, down

    def leaf(self, owner: Owner) -> str:
        """The kind of an owner's leaf qdisc."""
        return self.limits(owner).leaf or self._settings.leaf

    def kernel_leaf(self, owner: Owner) -> str:
        """The kind of leaf that the kernel has, as `outdated` found it; empty for none."""
        return self._other_leaf.get(owner.minor, self._settings.leaf)

    def _promise(self, owners: Iterable[Owner]) -> None:
        """Count the guarantees that the policy names."""
        for owner in owners:
            promises = self._promises[self._layout.queue(owner.minor)]
            if was := self._promised.pop(owner.minor, None):
                promises[0] -= was[1]
                promises[1] -= was[2]
            limits = self.limits(owner)
            if limits.guaranteed_bps is None or owner.state != ACTIVE:
                continue
            ceil = self._node.ceil_bps
            up, down = (
                min(limits.guaranteed_bps, limit_bps or ceil)
                for limit_bps in (limits.upload_bps, limits.download_bps)
            )
            self._promised[owner.minor] = owner, up, down
            promises[0] += up
            promises[1] += down

    def _shift(self) -> int:
        # The fullest tree decides: users of a plan are alike, whichever tree they are in.
        return guarantee_shift(max(map(max, self._promises)), self._node.ceil_bps)

    def _promised_owners(self) -> list[Owner]:
        return [owner for owner, _up, _down in self._promised.values()]

    # -- making it so ---------------------------------------------------------------------------

    def ensure(self, owners: Iterable[Owner]) -> list[KernelRefused]:
        """Make or change the classes of ``owners``; returns what the kernel refused."""
        wanted = {owner.minor: owner for owner in owners}
        self._promise(wanted.values())
        if self._shift() > self._node.shift:
            self._node = self._node._replace(shift=self._shift())
            wanted.update((owner.minor, owner) for owner in self._promised_owners())
        refused, again = self._send(wanted.values())
        if again:
            # They are there, although nobody knew: another process made them.
            self._note_made(again)
            self._learn()
            more, _ = self._send(wanted[minor] for minor in again)
            refused += more
        try:
            self._cut(wanted.values())
        except KernelRefused as error:
            refused.append(error)
        return refused

    def _cut(self, owners: Iterable[Owner]) -> None:
        """Cut off those of ``owners`` whose limits say so, and nobody else of them."""
        if self._may_cut():
            every = {owner.minor: owner for owner in owners}
            cut = {minor for minor, owner in every.items() if self._is_cut(owner)}
            fresh = self.cuts.change(cut, every.keys() - cut)
            try:
                self.empty([every[minor] for minor in fresh])
            finally:
                self.cuts.end(fresh)

    def empty(self, owners: list[Owner]) -> None:
        """Drop what waits in the queues of ``owners``: at the trickle of who is cut off it would
        leave for minutes, beside the class of who has moved it would be a second limit.

        Leaves are made anew.  Raises KernelRefused.
        """
        requests: list[Request] = []
        for owner in owners:
            leaf = self.leaf(owner)
            for ifindex, params in zip(self.devices, self.params(owner), strict=True):
                key = ClassKey(ifindex, self._layout.tree(owner.minor), owner.minor)
                target_us = leaf_target_us(params.ceil_bps, self._node)
                requests += [delete_leaf(key), add_leaf(key, leaf, target_us)]
        for index, code, what in self._tc.attempt(requests):
            if index % 2 == 0 and code in (errno.ENOENT, errno.EINVAL):
                continue  # there was none
            self._note_leaf(owners[index // 4].minor, _MIXED)
            raise KernelRefused(code, what)

    def _may_cut(self) -> bool:
        """Whether anybody is cut off, or is to be."""
        return self.policy.cuts or self.overrides.cut or bool(self.cuts.minors)

    def _is_cut(self, owner: Owner) -> bool:
        return owner.is_user and owner.state == ACTIVE and self.limits(owner).cut

    def _send(self, owners: Iterable[Owner]) -> tuple[list[KernelRefused], set[int]]:
        """One try; returns what was refused, and the minors whose class or leaf exists."""
        requests: list[Request] = []
        whose: list[int] = []
        may_be_gone: set[int] = set()
        for owner in owners:
            leaf = self.leaf(owner)
            for ifindex, params in zip(self.devices, self.params(owner), strict=True):
                key = ClassKey(ifindex, self._layout.tree(owner.minor), owner.minor)
                requests += self._requests(key, params, leaf, len(requests), may_be_gone)
                whose += [owner.minor] * (len(requests) - len(whose))
            self.made[owner.minor] = 1
            self._note_leaf(owner.minor, leaf)
        refused, again = [], set()
        for index, code, what in self._tc.attempt(requests):
            if index in may_be_gone and code in (errno.ENOENT, errno.EINVAL):
                continue
            if code == errno.EEXIST:
                again.add(whose[index])
                continue
            self.made[whose[index]] = 0
            refused.append(KernelRefused(code, what))
        return refused, again

    def _requests(
        self, key: ClassKey, params: HtbClass, leaf: str, position: int, may_be_gone: set[int]
    ) -> list[Request]:
        target_us = leaf_target_us(params.ceil_bps, self._node)
        if not self.made[key.minor]:
            return add_class(key, CEIL_MINOR, params, leaf, target_us)
        if not self._learned:
            self._learn()
        have = self._other_leaf.get(key.minor, self._settings.leaf)
        found = [change_class(key, CEIL_MINOR, params)]
        if have == leaf:
            if leaf == "fq_codel":
                found.append(change_leaf(key, leaf, target_us))
            return found
        # The kernel replaces no qdisc by one of another kind under the same handle.
        if have:
            may_be_gone.add(position + len(found))
            found.append(delete_leaf(key))
        found.append(add_leaf(key, leaf, target_us))
        return found

    def _note_made(self, minors: Iterable[int]) -> None:
        for minor in minors:
            self.made[minor] = 1

    def _note_leaf(self, minor: int, leaf: str) -> None:
        if leaf == self._settings.leaf:
            self._other_leaf.pop(minor, None)
        else:
            self._other_leaf[minor] = leaf

    def _learn(self) -> None:
        """Ask the kernel which leaves there are."""
        up, down = self._tc.leaves(self.devices, *self._layout)
        self._learned = True
        for minor in compress(range(1 << 16), self.made):
            kinds = {up.get(minor, ""), down.get(minor, "")}
            self._note_leaf(minor, kinds.pop() if len(kinds) == 1 else _MIXED)

    def outdated(self, owners: Iterable[Owner], listed: Listed | None = None) -> list[Owner]:
        """Those of ``owners`` whose classes are not what they should be (or were not, as ``listed``
        a moment ago)."""
        wanted = [(owner, self.params(owner)) for owner in owners]
        self._learn()
        found = {o.minor: o for o, _params in wanted if self.kernel_leaf(o) != self.leaf(o)}
        for which, have in enumerate(listed or self.listed()):
            for owner, params in wanted:
                has = have.get(owner.minor)
                if has is None or not same_class(has, params[which]):
                    found[owner.minor] = owner
        if self._may_cut():
            is_cut = self.cuts.minors
            found.update(
                (o.minor, o) for o, _params in wanted if self._is_cut(o) != (o.minor in is_cut)
            )
        return list(found.values())

    def listed(self) -> Listed:
        """The parameters of the classes that the kernel has, by minor, on (IFB, WAN)."""
        up, down = (self._tc.params(ifindex, *self._layout) for ifindex in self.devices)
        return up, down

    def kernel(self) -> tuple[dict[int, ClassState], dict[int, ClassState]]:
        """The classes that the kernel has, by minor, on (IFB, WAN)."""
        up, down = (self._tc.classes(ifindex, *self._layout) for ifindex in self.devices)
        return up, down
