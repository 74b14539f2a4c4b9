"""``vff-qos limit``, ``unlimit``, ``block`` and ``reset``: temporary overrides by a person.

The class is changed here and now, whether the agent runs or not; the agent finds the override in
the state, keeps it in force and ends it in time.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Mapping
from typing import Any

from ..core.owners import ACTIVE
from ..core.policy.model import Limits, Policy
from ..core.policy.overrides import OPERATOR, Override
from ..core.policy.parse import email_problem, parse_layer
from ..core.settings import Settings
from ..core.units import format_duration, format_rate
from ..errors import Refused
from ..journal import NOTICE, Journal
from ..kernel.devices import shaping_devices
from ..kernel.packed.tc import Tc
from ..lock import Lock
from ..shaping import Classes
from ..state import State

_MAX_WHY = 500


def give_order(
    settings: Settings,
    policy: Policy,
    state: State,
    lock: Lock,
    journal: Journal,
    email: str,
    entry: Mapping[str, Any] | None,
    for_s: int | None = None,
    why: str = "",
) -> str:
    """Put an override of ``email`` in force, or with ``entry`` None end it; returns what holds now.

    Raises Refused (nothing was changed) or KernelRefused.
    """
    if problem := email_problem(email):
        raise Refused(f"{email!r} {problem}")
    if len(why) > _MAX_WHY or not (why.isprintable() or not why):
        raise Refused(f"the reason must be at most {_MAX_WHY} printable characters")
    if entry is not None:
        try:
            parse_layer(entry, policy.plans)
        except ValueError as error:
            raise Refused(str(error)) from error
    tc = Tc()
    try:
        classes = Classes(settings, policy, tc, shaping_devices(settings))
        with lock:
            return _give(classes, state, journal, email, entry, for_s, why)
    finally:
        tc.close()


def _give(
    classes: Classes,
    state: State,
    journal: Journal,
    email: str,
    entry: Mapping[str, Any] | None,
    for_s: int | None,
    why: str,
) -> str:
    now, who = time.time(), current_user()
    earlier = [o for o in state.overrides() if (o.email, o.origin) == (email, OPERATOR)]
    if entry is None:
        state.delete_overrides(earlier)
    else:
        until = None if for_s is None else now + for_s
        order = Override(email, OPERATOR, dict(entry), until, who, why, now)
        state.save_overrides([order])
    classes.set_overrides(state.overrides())
    owners = state.owners()
    up, down = classes.kernel()
    shifted = classes.load(owners, set(up) & set(down))
    mine = [o for o in owners if o.key == email and o.state == ACTIVE and classes.has(o.minor)]
    for error in classes.ensure([*shifted, *mine]):
        raise error
    result = f"{email}: {describe_limits(classes.limits_of(email))}"
    if entry is None and not earlier:
        return f"no change; {result}"
    if entry is not None:
        result += f", {describe_time(order, now)}"
        result += f"; 'vff-qos reset {email}' ends it"
    if state.get_value("suspended"):
        result += "; suspended: nobody is limited at the moment"
    elif not mine:
        result += "; there is no such user at the moment, it holds when they come"
    journal.event(
        "override",
        f"{who} {'ended the override of' if entry is None else 'ordered for'} {result}"
        + (f" (reason: {why})" if why else ""),
        NOTICE,
        email=email,
        origin=OPERATOR,
        who=who,
        why=why,
    )
    return result


def current_user() -> str:
    """Who runs this command: through sudo, by login, or the account."""
    if name := os.environ.get("SUDO_USER"):
        return name
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        uid = -1  # a kernel without audit
    if uid in (-1, 0xFFFFFFFF):
        uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def describe_limits(limits: Limits) -> str:
    """Limits in one phrase."""
    if limits.blocked:
        return f"blocked ({format_rate(limits.upload_bps or 0)} in each direction)"
    up, down = (
        "unlimited" if bps is None else format_rate(bps)
        for bps in (limits.upload_bps, limits.download_bps)
    )
    return f"upload {up}, download {down}"


def describe_time(override: Override, now_s: float) -> str:
    """Until when an override holds."""
    if override.until is None:
        return "until it is reset"
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(override.until))
    return f"until {clock} (for {format_duration(override.until - now_s)})"


def describe_override(override: Override, now_s: float) -> str:
    """An override in one line, for ``status``."""
    gives = ", ".join(f"{key} {_plain(value)}" for key, value in override.entry.items())
    why = f": {override.why}" if override.why else ""
    by = override.who if override.origin == OPERATOR else override.origin
    return f"{override.email}: {gives}, {describe_time(override, now_s)}, by {by}{why}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
