"""What people read: journald with fields under systemd, standard error elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

#: MESSAGE_ID of each kind of event (journalctl MESSAGE_ID=...); docs/TROUBLESHOOTING.md lists them.
MESSAGE_IDS = {
    "started": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e01",
    "conflict": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e03",
    "distrust": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e04",
    "source": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e05",
    "masked": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e06",
    "mixed": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e07",
    "exhausted": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e08",
    "state": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e09",
    "kernel": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0a",
    "healed": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0b",
    "config": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0c",
    "collected": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0d",
    "suspended": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0e",
    "resumed": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e0f",
    "foreign": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e11",
    "override": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e12",
    "override_ended": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e13",
    "memory": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e14",
    "flows": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e15",
    "flood": "b1c0f6f23c9e4d9b8f7d6f0a5d6a1e16",
}

_MIN_GAP_S = 60.0
_SOCKET = "/run/systemd/journal/socket"


class Journal:
    """Writes events; at most one a minute of each kind that ``limited`` is asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, by_hand: bool = False) -> None:
        """``by_hand``: what a person does at a terminal belongs into the journal, too."""
        self._clock = clock
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}
        # systemd sets JOURNAL_STREAM when our output goes to the journal anyway.
        self._to_journal = "JOURNAL_STREAM" in os.environ or (by_hand and os.path.exists(_SOCKET))

    def event(self, kind: str, message: str, priority: int = INFO, **fields: str | int) -> None:
        """One entry of a known ``kind``; fields become ``VFF_QOS_<NAME>``."""
        try:
            if self._to_journal:
                from systemd import journal
        except ImportError:
            # What lifts limits must not end for want of python3-systemd.
            self._to_journal = False
        if not self._to_journal:
            print(message, file=sys.stderr, flush=True)
            return
        journal.send(
            message,
            PRIORITY=priority,
            SYSLOG_IDENTIFIER="vff-qos",
            MESSAGE_ID=MESSAGE_IDS[kind],
            **{f"VFF_QOS_{name.upper()}": str(value) for name, value in fields.items()},
        )

    def limited(
        self, kind: str, message: str, priority: int = WARNING, **fields: str | int
    ) -> None:
        """Like ``event``, but at most once a minute; says how many were held back."""
        now = self._clock()
        if now - self._last.get(kind, -_MIN_GAP_S) < _MIN_GAP_S:
            self._held[kind] = self._held.get(kind, 0) + 1
            return
        self._last[kind] = now
        held = self._held.pop(kind, 0)
        if held:
            message += f" ({held} more like this in the last minute)"
        self.event(kind, message, priority, **fields)


def notify(state: str) -> None:
    """Tell systemd (``READY=1``, ``WATCHDOG=1``, ``STATUS=...``); nothing outside of it."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon

        daemon.notify(state)
