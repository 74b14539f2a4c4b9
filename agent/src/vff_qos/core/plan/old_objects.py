"""What the role qos_per_user_xray left in the kernel, recognised by its own traces.

Its settings (`Observed.old`) say that it was here, and which devices it took; each thing counts
only if it is exactly as that role makes it.
"""

from __future__ import annotations

from ..old_role import FILTER, IFB_MAJOR, NAME, WAN_MAJOR, is_tree, users_of
from .handles import INGRESS, INGRESS_PARENT
from .objects import Filter, Observed, OtherMatch

_IP = "ip"


def has_old_tree(observed: Observed, dev: str) -> bool:
    """Whether the root qdisc of a device is the old role's."""
    root = observed.root(dev)
    if observed.old is None or root is None:
        return False
    wanted = IFB_MAJOR if dev == observed.old.ifb else WAN_MAJOR
    minors = observed.old_minors.get(dev, frozenset())
    return root.handle & 0xFFFF == 0 and is_tree(
        root.kind, root.handle >> 16, root.default, minors, wanted
    )


def is_old_ifb(observed: Observed, dev: str) -> bool:
    """Whether a device is the one that the old role's uploads pass."""
    link = observed.links.get(dev)
    if observed.old is None or link is None or dev != observed.old.ifb:
        return False
    return link.kind == "ifb" and not link.alias and has_old_tree(observed, dev)


def has_old_ingress(observed: Observed, dev: str) -> bool:
    """Whether the ingress qdisc of a device is the old role's, and nobody else uses it."""
    here = _at_ingress(observed, dev)
    return bool(here) and all(map(_is_old_filter, here))


def old_refusals(observed: Observed, wan: str) -> list[str]:
    """What forbids us to take the old role over, one sentence each."""
    found, old = [], observed.old
    if old and old.wan not in ("auto", wan) and has_old_tree(observed, old.wan):
        found.append(
            f"wan is {wan}, but the role {NAME} limits on {old.wan}; set wan to {old.wan}, or "
            "remove that role first"
        )
    here = _at_ingress(observed, wan)
    others = [item for item in here if not _is_old_filter(item)]
    if 0 < len(others) < len(here):
        told = ", ".join(f"{item.classifier} pref {item.place.pref}" for item in others)
        found.append(
            f"the ingress qdisc of {wan}, which the role {NAME} made, has filters of others: "
            f"{told}; move them"
        )
    return found


def marks_of_users(observed: Observed) -> tuple[int, ...]:
    """The old role's marks: each is the minor of its user's class."""
    minors = {
        minor
        for dev, found in observed.old_minors.items()
        if has_old_tree(observed, dev)
        for minor in found
    }
    return tuple(users_of(minors))


def _at_ingress(observed: Observed, dev: str) -> list[Filter]:
    """The filters in a device's ingress qdisc, if that may be the old role's: no clsact, and there
    is an IFB as that role names it."""
    old = observed.old
    link = observed.links.get(old.ifb) if old else None
    if link is None or link.kind != "ifb":
        return []
    if not any(
        q.dev == dev and q.parent == INGRESS_PARENT and q.kind == "ingress" for q in observed.qdiscs
    ):
        return []
    return [item for item in observed.filters if item.place[:2] == (dev, INGRESS)]


def _is_old_filter(item: Filter) -> bool:
    kind, chain, pref, _protocol = FILTER
    place = item.place
    shape = (place.chain, place.pref, place.protocol) == (chain, pref, _IP)
    return shape and isinstance(item.match, OtherMatch) and item.match.kind == kind
