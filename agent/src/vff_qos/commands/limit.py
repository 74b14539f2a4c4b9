"""``vff-qos limit``, ``unlimit``, ``block``, ``cut``, ``reset``: temporary overrides by a person.

The class is changed here and now, whether the agent runs or not; the agent finds the override in
the state, keeps it in force and ends it in time.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

from ..core import events
from ..core.claims.trust import address_key
from ..core.flows.ends import unmapped
from ..core.owners import ACTIVE, Owner
from ..core.policy.barred import Barred, read_barred, with_one
from ..core.policy.overrides import OPERATOR, Override
from ..core.policy.parse import email_problem, parse_layer
from ..core.policy.usage import Usage, is_automatic
from ..errors import Refused
from ..render import describe_end, describe_limits, place_name
from ..shaping import Classes
from ..state import BARRED, State
from .node import Node

_MAX_WHY = 500


def give_order(
    node: Node, email: str, entry: Mapping[str, Any] | None, for_s: int | None = None, why: str = ""
) -> str:
    """Put an override of ``email`` in force, or with ``entry`` None end it; returns what holds now.

    Raises ConfigError, Refused (nothing was changed) or KernelRefused.
    """
    _check(email, why)
    policy = node.policy_in_force
    email = node.name_of(email)
    order = None
    if entry is not None:
        try:
            parse_layer(entry, policy.plans)
        except ValueError as error:
            raise Refused(str(error)) from error
        now = time.time()
        until = None if for_s is None else now + for_s
        order = Override(email, OPERATOR, dict(entry), until, node.user, why, now)
    classes = node.classes(node.settings_in_force, policy)
    with node.lock:
        if order is None:
            return _end(node, classes, email, why)
        return _begin(node, classes, order)


def cut_from(node: Node, email: str, address: str, for_s: int | None = None, why: str = "") -> str:
    """End a user's connections from one address, new ones too; returns what holds now.

    Raises Refused (nothing was changed), ConfigError or KernelRefused.
    """
    _check(email, why)
    try:
        place = address_key(unmapped(ipaddress.ip_address(address).packed))
    except ValueError as error:
        raise Refused(f"--address: {address!r} is not an IPv4 or IPv6 address") from error
    email = node.name_of(email)
    classes = node.classes(node.settings_in_force, node.policy_in_force)
    state, now = node.state, time.time()
    until = None if for_s is None else now + for_s
    one = Barred(email, place.hex(), until, node.user)
    with node.lock:
        state.set_value(BARRED, with_one(read_barred(state.get_value(BARRED), now), one))
        ended = 0
        if not state.get_value("suspended"):
            owner = next((o for o in state.owners() if o.key == email), None)
            ended = classes.cuts.end_from(owner.minor, place) if owner is not None else 0
    order = Override(email, OPERATOR, {}, until, node.user, why, now)
    result = (
        f"{email}: cut off from {place_name(place)}, {describe_end(order, now)}; {ended} "
        f"connections ended; 'vff-qos reset {email}' ends it"
    )
    told = result + (f" (reason: {why})" if why else "")
    node.journal.tell(
        events.ORDER, who=node.user, order=told, email=email, origin=OPERATOR, why=why
    )
    return result


def _let_in(state: State, email: str) -> str:
    """Nobody keeps a user out from any address any more; returns what that changes."""
    known = read_barred(state.get_value(BARRED), time.time())
    left = [one for one in known if one.email != email]
    if len(left) == len(known):
        return ""
    state.set_value(BARRED, left)
    places = ", ".join(place_name(one.packed) for one in known if one.email == email)
    return f"; no longer cut off from {places}"


def let_off(node: Node, email: str, why: str = "") -> str:
    """End the penalties of ``email``, and have what was used count no more; returns what holds now.

    What a person has ordered stays, and accounts do.  Raises as `give_order`.
    """
    _check(email, why)
    policy, state = node.policy_in_force, node.state
    email = node.name_of(email)
    classes = node.classes(node.settings_in_force, policy)
    with node.lock:
        penalties = _penalties(state, email)
        # The agent knows more than it has saved: it does the same when it sees this.
        state.forgive(email)
        terms = policy.terms_of(email)
        for key, minor, up_seen, down_seen, data in list(state.usage(email)):
            usage = Usage.from_json(terms, data)
            usage.forgive()
            state.save_usage([(key, minor, up_seen, down_seen, usage.to_json())])
        state.delete_overrides(penalties)
        result = _enforce(classes, state, email) + _when(classes, state, email)
        ordered = [o for o in state.overrides() if (o.email, o.origin) == (email, OPERATOR)]
        mark = _mark(classes, state, email)
    for penalty in penalties:
        node.journal.tell(
            events.PENALTY_ENDED,
            mark,
            email=email,
            origin=penalty.origin,
            why=f"{node.user} has let them off" + (f" ({why})" if why else ""),
            limits=describe_limits(classes.limits_of(email)),
        )
    ended = "; ".join(f"{p.origin} ({p.why})" for p in penalties)
    result += f"; let off: {ended}" if ended else "; there was no penalty"
    if ordered:
        result += f"; what {ordered[0].who} ordered holds on: 'vff-qos reset {email}' ends it"
    return f"{result}; what was used until now counts no more for quota and fair use"


def _check(email: str, why: str) -> None:
    if problem := email_problem(email):
        raise Refused(f"{email!r} {problem}")
    if len(why) > _MAX_WHY or not (why.isprintable() or not why):
        raise Refused(f"the reason must be at most {_MAX_WHY} printable characters")


def _penalties(state: State, email: str) -> list[Override]:
    return [o for o in state.overrides() if o.email == email and is_automatic(o.origin)]


def _held(state: State, email: str) -> str:
    """Which penalties hold a user, and the way out."""
    now = time.time()
    held = [o for o in _penalties(state, email) if not o.ends_by(now)]
    if not held:
        return ""
    told = ", ".join(f"{o.origin} ({o.why}) {describe_end(o, now)}" for o in held)
    return f"; a penalty holds them: {told}; 'vff-qos reset {email} --usage' lets them off"


def _begin(node: Node, classes: Classes, order: Override) -> str:
    state = node.state
    state.save_overrides([order])
    result = (
        f"{_enforce(classes, state, order.email)}, {describe_end(order, order.created)}"
        f"; 'vff-qos reset {order.email}' ends it{_when(classes, state, order.email)}"
    )
    node.journal.tell(
        events.ORDER,
        _mark(classes, state, order.email),
        who=order.who,
        order=result + (f" (reason: {order.why})" if order.why else ""),
        email=order.email,
        origin=order.origin,
        why=order.why,
    )
    return result


def _end(node: Node, classes: Classes, email: str, why: str) -> str:
    state = node.state
    known = state.overrides()
    ended = [o for o in known if (o.email, o.origin) == (email, OPERATOR)]
    state.delete_overrides(ended)
    let_in = _let_in(state, email)
    result = _enforce(classes, state, email) + let_in
    if not ended:
        no_change = "" if let_in else "no change; "
        return f"{no_change}{result}{_held(state, email)}"
    result += _when(classes, state, email) + _held(state, email)
    for order in ended:
        node.journal.tell(
            events.ORDER_ENDED,
            _mark(classes, state, email),
            email=email,
            order=order.who,
            who=node.user,
            why=f"{node.user} has ended it" + (f" ({why})" if why else ""),
            limits=describe_limits(classes.limits_of(email)),
            origin=order.origin,
        )
    return result


def _enforce(classes: Classes, state: State, email: str) -> str:
    """Bring the class of ``email`` to what the overrides in the state say; returns its limits."""
    classes.set_overrides(state.overrides())
    owners = state.owners()
    up, down = classes.kernel()
    shifted = classes.load(owners, set(up) & set(down))
    for error in classes.ensure([*shifted, *_shaped(classes, state, email)]):
        raise error
    return f"{email}: {describe_limits(classes.limits_of(email))}"


def _shaped(classes: Classes, state: State, email: str) -> list[Owner]:
    """The owner of a class, if ``email`` is one at the moment."""
    owners = state.owners()
    return [o for o in owners if o.key == email and o.state == ACTIVE and classes.has(o.minor)]


def _mark(classes: Classes, state: State, email: str) -> int:
    """The mark of a user who has a class at the moment; else 0."""
    return next(map(classes.mark, _shaped(classes, state, email)), 0)


def _when(classes: Classes, state: State, email: str) -> str:
    """From when on it holds, if not from now on."""
    if state.get_value("suspended"):
        return "; suspended: nobody is limited at the moment"
    if not _shaped(classes, state, email):
        return "; there is no such user at the moment, it holds when they come"
    return ""
