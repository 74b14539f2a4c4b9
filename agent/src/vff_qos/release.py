"""The kill switch and its way back: ``suspend`` and ``resume``.

Suspended, no flow bears our mark, so that no packet reaches a user's class; everything else
stays.  The marks are kept with the flows' conntrack ids, so that ``resume`` gives them back to
the flows that still live, without waiting for new connections.
"""

from __future__ import annotations

import time

from .core.htb import TAG_MASK
from .core.settings import Settings
from .journal import NOTICE, Journal
from .kernel.conntrack import Conntrack, Entry
from .lock import Lock
from .state import State


def suspend(settings: Settings, state: State, lock: Lock, journal: Journal) -> int:
    """Clear our marks from all flows; returns how many there were.  Idempotent."""
    conntrack = Conntrack()
    with lock:
        saved = state.get_value("suspended") or {"since": time.time(), "flows": []}
        # Before the marks go: a follower that still runs must see it and stop.
        state.set_value("suspended", saved)
        entries = list(conntrack.dump(settings.major << 16, TAG_MASK))
        conntrack.set_entries([(entry, 0) for entry in entries])
        saved["flows"] += [
            [entry.family, entry.tuple_raw.hex(), entry.mark, entry.ident, entry.zone]
            for entry in entries
        ]
        state.set_value("suspended", saved)
    conntrack.close()
    journal.event(
        "suspended",
        f"suspended: {len(entries)} flows are unlimited now",
        NOTICE,
        flows=len(entries),
    )
    return len(entries)


def resume(state: State, lock: Lock, journal: Journal) -> int | None:
    """Undo ``suspend``; returns how many flows are limited again, None if nothing was suspended.

    The follower then replays the log from the time of the suspension.
    """
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
    journal.event("resumed", f"resumed: {count} flows are limited again", NOTICE, flows=count)
    return count
