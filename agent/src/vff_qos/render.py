"""Text for people: names, rates, times and overrides, said the same way everywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .core.owners import DEFAULT_SHARED, DEVICE, RESTRICTED_KEY, SPARE
from .core.policy.model import Limits
from .core.policy.overrides import OPERATOR, Override
from .core.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from .core.events import JournalEvent
    from .core.owners import Owner
    from .journal import Journal
    from .shaping import Classes

UNLIMITED = "unlimited"


def display_name(key: str) -> str:
    """An owner's key as people read it."""
    if key == RESTRICTED_KEY:
        return "(restricted) all further addresses"
    if key.startswith(RESTRICTED_KEY):
        # What stands after the address are the limits.
        place, _, user = key[1:].partition("/")
        if not place:
            return "(restricted) all further addresses, with the lowest limits"
        text = f"(restricted) {place_name(bytes.fromhex(place))}"
        device = f"/{user}".removeprefix(DEVICE)
        return f"{text}, a device too many of {device}" if device != f"/{user}" else text
    if key.startswith(SPARE):
        return "(spare)"
    if key == DEFAULT_SHARED:
        return "(newcomers without a class of their own)"
    return "(unknown)" if key[:1] < " " else key


def place_name(raw: bytes) -> str:
    """An address as people read it, or an IPv6 network of 64 bits."""
    return ".".join(map(str, raw)) if len(raw) == 4 else _ipv6_net(raw)


def _ipv6_net(raw: bytes) -> str:
    return ":".join(raw[i : i + 2].hex() for i in range(0, 8, 2)) + "::/64"


def local_time(when_s: float) -> str:
    """Seconds since the epoch as a local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when_s))


def limit(rate_bps: int | None, ceil_bps: int | None = None) -> str:
    """A user's limit; one as high as the node's ceiling is none."""
    if rate_bps is None or (ceil_bps is not None and rate_bps >= ceil_bps):
        return UNLIMITED
    return format_rate(rate_bps)


def measured(rate_bps: int) -> str:
    """A measured rate: three digits are enough."""
    for unit, name in ((10**9, "gbit"), (10**6, "mbit"), (10**3, "kbit")):
        if rate_bps >= unit:
            return f"{rate_bps / unit:.3g}{name}"
    return f"{rate_bps}bit"


def value(key: str, given: object) -> str:
    """The value of a key of the policy, as it was written or in bit/s and bytes."""
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, int) and key in ("upload", "download", "guaranteed"):
        return format_rate(given)
    if key == "grace" and isinstance(given, int):
        return format_duration(given)
    return format_size(given) if isinstance(given, int) and key == "burst" else str(given)


def describe_limits(limits: Limits) -> str:
    """Limits in one phrase."""
    if limits.cut:
        return "cut off (their connections end at once)"
    if limits.blocked:
        return f"blocked ({format_rate(limits.upload_bps or 0)} in each direction)"
    return f"upload {limit(limits.upload_bps)}, download {limit(limits.download_bps)}"


def describe_end(override: Override, now_s: float) -> str:
    """Until when an override holds."""
    if override.until is None:
        return "until it is reset"
    left = format_duration(override.until - now_s)
    return f"until {local_time(override.until)} (for {left})"


def author(override: Override) -> str:
    """Who has ordered an override: a person, or a rule."""
    return override.who if override.origin == OPERATOR else override.origin


def describe_override(override: Override, now_s: float) -> str:
    """An override in one line."""
    gives = ", ".join(f"{key} {value(key, given)}" for key, given in override.entry.items())
    why = f": {override.why}" if override.why else ""
    end = describe_end(override, now_s)
    return f"{override.email}: {gives}, {end}, by {author(override)}{why}"


def tell_limits(
    journal: Journal, event: JournalEvent, classes: Classes, owners: Sequence[Owner]
) -> None:
    """Tell of the limits that some owners have now, if they are users."""
    users = [owner for owner in owners if owner.is_user]
    for number, owner in enumerate(users):
        if not journal.has_room(event):
            journal.leave_out(event, len(users) - number)
            return
        journal.tell(
            event,
            classes.mark(owner),
            email=owner.key,
            limits=describe_limits(classes.limits(owner)),
            rule=classes.rule(owner.key),
        )
