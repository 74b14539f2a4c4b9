"""What lifts limits must work where the settings cannot be read: it goes by what the kernel has.

``suspend`` and ``remove`` need no more of the settings than the handle of our trees; our IFB is
known by its alias, our table by its name.
"""

from __future__ import annotations

import socket
from contextlib import closing

from ..core.htb import CEIL_MINOR, UNCLASSIFIED_MINOR, same_class, shared_class
from ..core.plan.objects import STATE_KEY, Record, is_tree
from ..core.settings import Settings
from ..kernel.packed.tc import Tc, read_qdiscs
from ..state import State

_SHARED = (CEIL_MINOR, UNCLASSIFIED_MINOR)


def majors_found() -> set[int]:
    """Handles of the trees in this network namespace that are built as ours are: an HTB where ours
    stand, with our default class, and both classes that all share, in every parameter but the
    rate as only we make them."""
    names = {index: name for index, name in socket.if_nameindex()}
    indices = {name: index for index, name in names.items()}
    found = set()
    with closing(Tc()) as tc:
        for qdisc in read_qdiscs(tc.netlink, names, ()):
            major = qdisc.handle >> 16
            if qdisc.default != UNCLASSIFIED_MINOR or not is_tree(qdisc, (major,)):
                continue
            shared = tc.shared_classes(indices[qdisc.dev], major, _SHARED)
            if len(shared) == len(_SHARED) and all(
                same_class(params, shared_class(params.ceil_bps)) for params in shared.values()
            ):
                found.add(major)
    return found


def settings_found(state: State) -> list[Settings]:
    """Settings for `suspend` and `remove`, one for each handle that is ours by the kernel or by
    our record; the default's where neither knows any.  Raises KernelRefused, StateError."""
    majors = majors_found()
    recorded = Record.from_json(state.get_value(STATE_KEY)).major
    if recorded is not None:
        majors.add(recorded)
    return [Settings(major=major) for major in sorted(majors or {Settings.major})]
