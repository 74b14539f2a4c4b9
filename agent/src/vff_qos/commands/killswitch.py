"""The kill switch and its way back: ``suspend`` and ``resume``.

Suspended, no flow bears our mark, so that no packet reaches a user's class, and the classes that
all share have no limit; everything else stays.  ``bootstrap`` gives the shared classes theirs
back.  The marks are kept with the flows' conntrack ids, so that ``resume`` gives them back to
the flows that still live, without waiting for new connections.
"""

from __future__ import annotations

import os
import socket
import time

from ..core import events
from ..core.events import JournalEvent
from ..core.htb import (
    CEIL_MINOR,
    ROOT_MINOR,
    UNCLASSIFIED_MINOR,
    same_class,
    shared_class,
)
from ..core.plan.handles import is_tree
from ..core.settings import Settings
from ..journal import Journal
from ..kernel.packed.conntrack import Conntrack, Entry
from ..kernel.packed.netlink import Netlink
from ..kernel.packed.nft_elements import (
    CutSet,
    EarlyMaps,
    FloodSets,
    QuicIds,
    StaticMaps,
    clear_elements,
)
from ..kernel.packed.qdisc_list import read_qdiscs
from ..kernel.packed.tc import ClassKey, Tc, change_class
from ..lock import Lock
from ..state import State


def suspend(settings: Settings, state: State, lock: Lock, journal: Journal) -> int | None:
    """Clear our marks from all flows and lift shared limits; returns how many flows there were.

    Idempotent: None if everything was suspended already.  Raises KernelRefused.
    """
    began = time.time()
    conntrack = Conntrack()
    with lock:
        earlier = state.get_value("suspended")
        saved = earlier or {"since": time.time(), "flows": []}
        # Before anything that may fail: a follower that still runs must see it and stop.
        state.set_value("suspended", saved)
        clear_elements(CutSet, EarlyMaps, FloodSets, StaticMaps)
        _stop_following()
        entries = conntrack.dump(settings.layout.tag, settings.layout.mask)
        if entries:
            saved["flows"] += [
                [entry.family, entry.tuple_raw.hex(), entry.mark, entry.ident, entry.zone]
                for entry in entries
            ]
            # Before the marks go: only here `resume` finds them, whatever becomes of us.
            state.set_value("suspended", saved)
        conntrack.set_entries([(entry, 0) for entry in entries])
        if not _lift(settings) and earlier and not entries:
            return None
    conntrack.close()
    _tell(journal, events.SUSPENDED, len(entries), began)
    return len(entries)


def _stop_following() -> None:
    """Before marks go, or the kernel gives them back to whoever moves."""
    ids = QuicIds()
    try:
        ids.stop()
    finally:
        ids.close()


def _lift(settings: Settings) -> int:
    """Take the limits of node and unclassified traffic away, in place, on every device that has
    our tree; returns how many classes had one."""
    netlink, tc = Netlink(socket.NETLINK_ROUTE), Tc()
    majors = settings.layout.majors
    free = shared_class(settings.lifted().node_ceil_bps)
    parents = {CEIL_MINOR: ROOT_MINOR, UNCLASSIFIED_MINOR: CEIL_MINOR}
    indices = {name: index for index, name in socket.if_nameindex()}
    names = {index: name for name, index in indices.items()}
    requests = []
    for qdisc in read_qdiscs(netlink, names, majors):
        if not is_tree(qdisc, majors):
            continue
        index, major = indices[qdisc.dev], qdisc.handle >> 16
        have = tc.shared_classes(index, major, tuple(parents))
        for minor, params in have.items():
            if not same_class(params, free):
                key = ClassKey(index, major, minor)
                requests.append(change_class(key, parents[minor], free))
    tc.apply(requests)
    tc.close()
    netlink.close()
    return len(requests)


def _age_s() -> float:
    """Seconds since this process was started (proc(5), field 22 of stat)."""
    with open("/proc/self/stat", encoding="ascii") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def resume(state: State, lock: Lock, journal: Journal) -> int | None:
    """Undo ``suspend``; returns how many flows are limited again, None if nothing was suspended.

    The follower then replays the log from the time of the suspension.
    """
    began = time.time()
    with lock:
        saved = state.get_value("suspended")
        if saved is None:
            return None
        conntrack = Conntrack()
        entries = [
            Entry(family, bytes.fromhex(raw), mark, ident, zone)
            for family, raw, mark, ident, zone in saved["flows"]
        ]
        alive = conntrack.live(entries)
        count = conntrack.set_entries([(entry, entry.mark) for entry in alive])
        conntrack.close()
        state.set_value("replay_since", saved["since"])
        state.set_value("suspended", None)
    _tell(journal, events.RESUMED, count, began)
    return count


def _tell(journal: Journal, event: JournalEvent, flows: int, began: float) -> None:
    """Say it, and when the work began and ended.

    The entry's own time is later: the library that writes it is only loaded then.
    """
    ended, took_s = time.time(), _age_s()
    journal.tell(
        event,
        flows=flows,
        began_us=round(began * 1e6),
        ended_us=round(ended * 1e6),
        took_ms=round(took_s * 1000),
    )
