"""Where flows in doubt go: classes that the doubted flows of one address share.

Text alone puts nobody below the lower of their own plan and the default, and lifts nobody above it:

- whoever wrote the text is elsewhere, or equal words name two users: the highest that was claimed,
  up to the default's;
- whoever wrote the text comes from the same address, or nobody knows: the lowest that was claimed;
- an inbound that checks no names: the lowest that any rule gives.

Blocked users do not count: naming one would take a stranger's connection down.
"""

from __future__ import annotations

from ..core.claims.trust import address_key
from ..core.flows.record import MINOR, PROVISIONAL
from ..core.owners import Owner
from ..core.policy.model import Limits, Policy, lowest_of
from .registry import Registry

_Rates = tuple[int | None, int | None]


class Restriction:
    """Owners of restricted classes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def shared(self, address: bytes) -> Owner:
        """The class with the default's limits."""
        return self._owner(address, (None, None))

    def lowest(self, address: bytes) -> Owner:
        """The class with the lowest limits that any rule gives."""
        rates = self._below_default(self._policy().lowest())
        owner = self._owner(address, rates)
        if not owner.is_common or rates == (None, None):
            return owner
        # Nobody lifts a limit by having many addresses: all further ones share one with these.
        return self._registry.own_restricted(_named("", rates), *rates, bounded=False)

    def of(self, address: bytes, record: int, email: bytes | None, inside: bool) -> Owner:
        """The class for a flow that ``email`` is said to have, if anybody.

        ``inside``: the text may have been written by whoever has the flow.
        """
        claims: list[Limits] = []
        if email:
            claims.append(self._registry.limits_of(email))
        holder = self._registry.owner(record & MINOR)
        if record & MINOR and not record & PROVISIONAL and holder is not None:
            claims.append(self._registry.classes.limits(holder))
        claims = [limits for limits in claims if not limits.blocked]
        if not claims:
            return self.shared(address)
        limits = lowest_of(claims) if inside else _highest_of(claims)
        return self._owner(address, self._below_default(limits))

    def _policy(self) -> Policy:
        return self._registry.classes.policy

    def _below_default(self, limits: Limits) -> _Rates:
        """What is below the default's limits; None in place of what is not."""
        default = self._policy().default
        return (
            _lower(limits.upload_bps, default.upload_bps),
            _lower(limits.download_bps, default.download_bps),
        )

    def _owner(self, address: bytes, rates: _Rates) -> Owner:
        key = _named(address_key(address).hex(), rates)
        return self._registry.own_restricted(key, *rates, bounded=True)


def _named(place: str, rates: _Rates) -> str:
    return place if rates == (None, None) else f"{place}/{rates[0] or ''}-{rates[1] or ''}"


def _highest_of(claims: list[Limits]) -> Limits:
    return Limits(
        _highest([limits.upload_bps for limits in claims]),
        _highest([limits.download_bps for limits in claims]),
    )


def _highest(rates: list[int | None]) -> int | None:
    known = [rate for rate in rates if rate is not None]
    return None if len(known) < len(rates) else max(known)


def _lower(rate: int | None, bound: int | None) -> int | None:
    return rate if rate is not None and (bound is None or rate < bound) else None
