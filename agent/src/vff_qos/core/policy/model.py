"""Who gets what: ``policy.yml``, its drop-ins, and the limits that follow from them for an email.

The first rule that knows an email decides: its entry under ``users`` (a drop-in's before that of
``policy.yml``), the first pattern of ``match`` that fits, else ``default``.  What the rule does
not say comes from the plan it names, then from ``default``.  docs/POLICY.md explains it to people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..names import Names, is_hash
from .terms import CUT, EVICT, RESTRICT, Terms

#: Both directions of a device too many: enough to see that there is a limit.
DEVICE_BPS = 128_000

#: Both directions of a blocked user: connections live, and nothing can be done with them.
BLOCKED_BPS = 8_000

#: Emails are chosen by whoever writes a log line: what is remembered of them is bounded.
_MAX_CACHED = 16_384


class Limits(NamedTuple):
    """What one user may use.  Rates in bit/s; ``None`` is unlimited: only the node's ceiling holds.

    ``guaranteed_bps`` and ``burst_bytes``: None for what the class's other numbers give;
    ``leaf``: empty for the node's; ``cut``: blocked, and connections end at once.

    ``connections``: so many live ones at most (None: any number), and what `over_connections` does
    with more: EVICT or REFUSE.  ``devices``: so many addresses at once at most, ``grace_s``: how
    long a silent one keeps its place among them, ``over``: RESTRICT or REFUSE.
    """

    upload_bps: int | None
    download_bps: int | None
    guaranteed_bps: int | None = None
    weight: int = 1
    burst_bytes: int | None = None
    leaf: str = ""
    blocked: bool = False
    cut: bool = False
    connections: int | None = None
    over_connections: str = EVICT
    devices: int | None = None
    grace_s: int = 120
    over: str = RESTRICT

    @property
    def counts_flows(self) -> bool:
        """Whether the user's flows must be counted."""
        return self.connections is not None or self.devices is not None


def lowest_of(limits: Iterable[Limits]) -> Limits:
    """The lower of each; unlimited only if all are.  Guarantees, bursts and leaves are dropped."""
    known = list(limits)
    up = [limit.upload_bps for limit in known if limit.upload_bps is not None]
    down = [limit.download_bps for limit in known if limit.download_bps is not None]
    return Limits(
        min(up, default=None),
        min(down, default=None),
        weight=min((limit.weight for limit in known), default=1),
        blocked=any(limit.blocked for limit in known),
        cut=any(limit.cut for limit in known),
    )


DEFAULT_LIMITS = Limits(upload_bps=20_000_000, download_bps=50_000_000)

NO_TERMS = Terms()

#: The keys that one place of the policy gives, with their values: rates in bit/s, sizes in bytes.
Layer = dict[str, Any]


class Pattern(NamedTuple):
    """An entry of ``match``: a glob in the manner of fnmatch.fnmatchcase, what it gives, and the
    limits that follow."""

    glob: str
    fits: Callable[[str], object]
    layer: Layer
    limits: Limits


class Rule(NamedTuple):
    """What decides about an email: ``kind`` is user, pattern or default, ``name`` which one."""

    kind: str
    name: str
    layer: Layer
    limits: Limits


@dataclass(frozen=True)
class Policy:
    """The policy in force.  ``users`` holds the limits of exact emails."""

    default: Limits = DEFAULT_LIMITS
    users: dict[str, Limits] = field(default_factory=dict)
    plans: dict[str, Layer] = field(default_factory=dict)
    #: Fair use and quotas, of plans that have any.
    terms: dict[str, Terms] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()
    default_layer: Layer = field(default_factory=dict)
    user_layers: dict[str, Layer] = field(default_factory=dict)
    #: Where names are hashes: which patterns fit them, as far as is known (`core.names`).
    globs: Mapping[str, tuple[str, ...]] | None = field(default=None, compare=False, repr=False)
    _matched: dict[str, Pattern | None] = field(default_factory=dict, compare=False, repr=False)

    def limits(self, email: str) -> Limits:
        """The limits of ``email`` without temporary overrides."""
        limits = self.users.get(email)
        if limits is not None:
            return limits
        pattern = self._match(email) if self.patterns else None
        return pattern.limits if pattern else self.default

    def named(self, names: Names) -> Policy:
        """The same for users who are known by these names."""
        if names.are_emails:
            return self
        return replace(
            self,
            users={
                name: limits for email, limits in self.users.items() for name in names.all_of(email)
            },
            user_layers={
                name: layer
                for email, layer in self.user_layers.items()
                for name in names.all_of(email)
            },
            globs=names.globs,
            _matched={},
        )

    def fitting(self, email: str) -> tuple[str, ...]:
        """All patterns that fit an email."""
        return tuple(pattern.glob for pattern in self.patterns if pattern.fits(email))

    def rule(self, email: str) -> Rule:
        """The rule that decides about ``email``."""
        if email in self.users:
            return Rule("user", email, self.user_layers.get(email, {}), self.users[email])
        if pattern := self._match(email):
            return Rule("pattern", pattern.glob, pattern.layer, pattern.limits)
        return Rule("default", "default", self.default_layer, self.default)

    def plan(self, email: str) -> str | None:
        """The plan that the rule of ``email`` takes its limits from; None without one."""
        name = self.rule(email).layer.get("plan", self.default_layer.get("plan"))
        return None if name is None else str(name)

    def layers(self, email: str) -> list[tuple[str, Layer]]:
        """What has a say about ``email``, weakest first: (``default``, ``plan gold``, ...)."""
        rule = self.rule(email)
        found = [*self._plan_of(self.default_layer), ("default", self.default_layer)]
        if rule.kind != "default":
            name = f"{rule.kind} {rule.name}"
            found += [*self._plan_of(rule.layer), (name, rule.layer)]
        return found

    def overlaid(self, email: str, layer: Layer) -> Limits:
        """The limits of ``email`` with ``layer`` (see `parse_layer`) above its own rule.

        It ends a block unless it says ``blocked`` itself.
        """
        rule = self.rule(email)
        below = rule.limits
        if below.blocked:
            own = [*self._plan_of(rule.layer), ("", rule.layer)]
            below = merge(self._base, [unblocked(found) for _name, found in own])
        return merge(below, [*(plan for _name, plan in self._plan_of(layer)), layer])

    def terms_of(self, email: str) -> Terms:
        """The fair use and the quota of ``email``: those of the plan, whole.

        Who has none has that of ``default``, but for those who are unlimited by name.
        """
        if not self.terms:
            return NO_TERMS
        layer = self.rule(email).layer
        if "plan" not in layer and not layer.get("unlimited"):
            layer = self.default_layer
        return self.terms.get(layer.get("plan", ""), NO_TERMS)

    def lowest(self) -> Limits:
        """What everybody has at least: nobody gains by a claim that gives only this.

        Blocked users do not count, or blocking one would throttle all.
        """
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        return lowest_of([limits for limits in rules if not limits.blocked] or [self.default])

    @cached_property
    def names_guarantees(self) -> bool:
        """Whether anybody may have a guaranteed rate that the policy names."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        plans = any("guaranteed" in layer for layer in self.plans.values())
        return plans or any(limits.guaranteed_bps is not None for limits in rules)

    @cached_property
    def cuts(self) -> bool:
        """Whether the policy cuts anybody off."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        return any(limits.cut for limits in rules)

    @cached_property
    def counts_flows(self) -> bool:
        """Whether anybody's number of connections or devices is limited."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        plans = any(names_flow_limits(layer) for layer in self.plans.values())
        return plans or any(limits.counts_flows for limits in rules)

    @cached_property
    def max_weight(self) -> int:
        """The largest weight that anybody may have."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        plans: list[int] = [layer.get("weight", 1) for layer in self.plans.values()]
        return max([*plans, *(limits.weight for limits in rules)])

    @property
    def _base(self) -> Limits:
        """What is below all rules: the default, but where unknown users are blocked, those with a
        rule of their own are not."""
        if not self.default.blocked:
            return self.default
        return base_limits(self.plans, self.default_layer)

    def _plan_of(self, layer: Layer) -> list[tuple[str, Layer]]:
        name = layer.get("plan")
        return [(f"plan {name}", self.plans.get(name, {}))] if name is not None else []

    def _match(self, email: str) -> Pattern | None:
        if self.globs is not None and is_hash(email):
            fits = {*self.globs.get(email, ()), "*"}
            return next((pattern for pattern in self.patterns if pattern.glob in fits), None)
        try:
            return self._matched[email]
        except KeyError:
            found = next((pattern for pattern in self.patterns if pattern.fits(email)), None)
        if len(self._matched) >= _MAX_CACHED:
            self._matched.clear()
        self._matched[email] = found
        return found


#: Key of the file -> field of Limits.
_FIELDS = {
    "upload": "upload_bps",
    "download": "download_bps",
    "guaranteed": "guaranteed_bps",
    "weight": "weight",
    "burst": "burst_bytes",
    "leaf": "leaf",
    "blocked": "blocked",
    "connections": "connections",
    "over_connections": "over_connections",
    "devices": "devices",
    "grace": "grace_s",
    "over": "over",
}


def merge(base: Limits, layers: Iterable[Layer]) -> Limits:
    """``base``, which is not blocked, below ``layers``, of which the last is the strongest."""
    values: dict[str, Any] = base._asdict()
    for layer in layers:
        if layer.get("unlimited"):
            values["upload_bps"] = values["download_bps"] = None
        for key, name in _FIELDS.items():
            if key in layer:
                values[name] = layer[key]
    if blocked := values["blocked"]:
        leaf, cut = values["leaf"], blocked == CUT
        return Limits(BLOCKED_BPS, BLOCKED_BPS, leaf=leaf, blocked=True, cut=cut)
    return Limits(**values)


def names_flow_limits(layer: Layer) -> bool:
    """Whether a layer limits how many flows somebody has."""
    return "connections" in layer or "devices" in layer


def unblocked(layer: Layer) -> Layer:
    return {key: value for key, value in layer.items() if key != "blocked"}


def base_limits(plans: dict[str, Layer], default_layer: Layer) -> Limits:
    plan = plans.get(default_layer.get("plan", ""), {})
    return merge(DEFAULT_LIMITS, [unblocked(plan), unblocked(default_layer)])
