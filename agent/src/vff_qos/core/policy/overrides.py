"""Temporary overrides: what somebody ordered for one user, above the policy, until a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from .model import Layer, Limits, Policy, lowest_of, names_flow_limits
from .parse import parse_layer
from .terms import CUT

#: Origin of what a person ordered; automatic ones have other names and give way to it.
OPERATOR = "operator"


class Override(NamedTuple):
    """One order.  A user has at most one of each ``origin``.

    ``entry`` is what it gives, with the keys and values of an entry of ``users`` in policy.yml;
    ``until`` and ``created`` are seconds since the epoch, ``until`` None for "until reset".
    """

    email: str
    origin: str
    entry: dict[str, Any]
    until: float | None
    who: str
    why: str
    created: float

    def ends_by(self, now_s: float) -> bool:
        """Whether its time is over."""
        return self.until is not None and self.until <= now_s


def counting(overrides: Iterable[Override], now_s: float) -> list[Override]:
    """Those of one user that count: the operator's alone, else all others."""
    live = [override for override in overrides if not override.ends_by(now_s)]
    return [override for override in live if override.origin == OPERATOR] or live


class Overrides:
    """The overrides of all users, read against a policy."""

    def __init__(self, known: Iterable[Override], policy: Policy) -> None:
        """Those that ``policy`` does not allow (a plan is gone) count for nothing: `problems`."""
        self.problems: list[str] = []
        self._known = list(known)
        self.by_email: dict[str, list[tuple[Override, Layer]]] = {}
        self._policy = policy
        for override in self._known:
            try:
                layer = parse_layer(override.entry, policy.plans)
            except ValueError as error:
                self.problems.append(
                    f"the override of {override.email} ({override.origin}) is void: {error}"
                )
            else:
                self.by_email.setdefault(override.email, []).append((override, layer))

    def all(self) -> list[Override]:
        """All of them, void ones, too."""
        return list(self._known)

    @property
    def name_guarantees(self) -> bool:
        """Whether one of them names a guaranteed rate itself."""
        return any("guaranteed" in layer for p in self.by_email.values() for _o, layer in p)

    @cached_property
    def counts_flows(self) -> bool:
        """Whether one of them itself limits how many flows or devices somebody has."""
        layers = [layer for pairs in self.by_email.values() for _order, layer in pairs]
        return any(map(names_flow_limits, layers))

    @cached_property
    def cut(self) -> bool:
        """Whether one of them may cut somebody off, by itself or by its plan."""
        layers = [layer for pairs in self.by_email.values() for _order, layer in pairs]
        layers += [self._policy.plans.get(layer.get("plan", ""), {}) for layer in layers]
        return any(layer.get("blocked") == CUT for layer in layers)

    def in_force(self, email: str, now_s: float) -> list[tuple[Override, Layer]]:
        """The overrides that count for ``email``: the operator's alone, else all others."""
        found = self.by_email.get(email)
        if not found:
            return []
        counts = counting((override for override, _layer in found), now_s)
        return [pair for pair in found if pair[0] in counts]

    def limits(self, email: str, now_s: float) -> Limits:
        """The limits of ``email``: of automatic overrides and the policy, the lowest of each."""
        live = self.in_force(email, now_s)
        if not live:
            return self._policy.limits(email)
        results = [self._policy.overlaid(email, layer) for _override, layer in live]
        if live[0][0].origin != OPERATOR:
            # No penalty makes anybody faster.
            results.append(self._policy.limits(email))
        lowest = lowest_of(results)
        return results[0]._replace(
            upload_bps=lowest.upload_bps,
            download_bps=lowest.download_bps,
            weight=lowest.weight,
            blocked=lowest.blocked,
            cut=lowest.cut,
        )

    def next_end(self) -> float | None:
        """When the next one is over, in seconds since the epoch; None if none ever is."""
        return min((o.until for o in self._known if o.until is not None), default=None)


def changed_emails(
    old: Mapping[str, list[tuple[Override, Layer]]], new: Mapping[str, list[tuple[Override, Layer]]]
) -> set[str]:
    """The emails whose overrides are not the same in both."""
    return {email for email in {*old, *new} if old.get(email) != new.get(email)}
