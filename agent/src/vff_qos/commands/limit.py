"""``vff-qos limit``, ``unlimit``, ``block`` and ``reset``: temporary overrides by a person.

The class is changed here and now, whether the agent runs or not; the agent finds the override in
the state, keeps it in force and ends it in time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..core import events
from ..core.owners import ACTIVE, Owner
from ..core.policy.overrides import OPERATOR, Override
from ..core.policy.parse import email_problem, parse_layer
from ..errors import Refused
from ..render import describe_end, describe_limits
from ..shaping import Classes
from ..state import State
from .node import Node

_MAX_WHY = 500


def give_order(
    node: Node, email: str, entry: Mapping[str, Any] | None, for_s: int | None = None, why: str = ""
) -> str:
    """Put an override of ``email`` in force, or with ``entry`` None end it; returns what holds now.

    Raises ConfigError, Refused (nothing was changed) or KernelRefused.
    """
    if problem := email_problem(email):
        raise Refused(f"{email!r} {problem}")
    if len(why) > _MAX_WHY or not (why.isprintable() or not why):
        raise Refused(f"the reason must be at most {_MAX_WHY} printable characters")
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
    result = _enforce(classes, state, email)
    if not ended:
        return f"no change; {result}"
    result += _when(classes, state, email)
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
