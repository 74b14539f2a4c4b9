"""What people read: journald with fields under systemd, standard error elsewhere.

What may be said is in `core.events`.  Each entry is one datagram, without a look at the stack or
the sources (``systemd.journal.send`` takes both), so that telling costs the agent little.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from .core import events
from .core.events import ALWAYS, DEBUG, MANY, ONCE, JournalEvent
from .core.htb import format_classid

#: Bounds are counted anew after so long, in seconds.
_WINDOW_S = 60.0
#: In that time: users whom an event that is told once is about, and events that are told of many.
_MAX = {ONCE: 20, MANY: 200}
_SOCKET = "/run/systemd/journal/socket"
#: An email, or the emails of two users.
Value = str | int | tuple[str, ...]


class _Window:
    """What was told of one event within a minute."""

    __slots__ = ("about", "began", "left_out", "told")

    def __init__(self, began: float) -> None:
        self.began, self.told, self.left_out = began, 0, 0
        self.about: set[Value] = set()


class Journal:
    """Writes entries, of some events no more than people can read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, by_hand: bool = False) -> None:
        """``by_hand``: what a person does at a terminal belongs into the journal, too."""
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        # systemd sets JOURNAL_STREAM when our output goes to the journal anyway.
        self.is_unit = "JOURNAL_STREAM" in os.environ
        self._to_journal = self.is_unit or (by_hand and os.path.exists(_SOCKET))

    def tell(self, event: JournalEvent, mark: int = 0, **fields: Value) -> None:
        """One entry; what the event is told of too often is left out and counted.

        ``fields`` become ``VFF_QOS_<NAME>``, empty ones do not; a user's ``mark`` also the class.
        """
        if event.bound != ALWAYS and not self._is_wanted(event, fields.get("email", "")):
            return
        if mark:
            fields["class"], fields["mark"] = format_classid(mark), f"{mark:#010x}"
        message = event.sentence.format(**{name: _text(value) for name, value in fields.items()})
        self._write(event, message, fields)

    def has_room(self, event: JournalEvent) -> bool:
        """Whether an event that is told of many would be told now."""
        window = self._windows.get(event.name)
        is_open = window is not None and self._clock() - window.began < _WINDOW_S
        return not is_open or window is None or window.told < _MAX[event.bound]

    def leave_out(self, event: JournalEvent, count: int) -> None:
        """Count entries that there is no room for."""
        self._windows[event.name].left_out += count

    def tend(self) -> None:
        """Once a second: say how much was left out in a minute that is over."""
        now = self._clock()
        for name, window in list(self._windows.items()):
            if now - window.began >= _WINDOW_S:
                self._end(name)

    def close(self) -> None:
        """Say how much was left out until now."""
        for name in list(self._windows):
            self._end(name)

    def _is_wanted(self, event: JournalEvent, about: Value) -> bool:
        now = self._clock()
        window = self._windows.get(event.name)
        if window is not None and now - window.began >= _WINDOW_S:
            self._end(event.name)
            window = None
        if window is None:
            window = self._windows[event.name] = _Window(now)
        if window.told >= _MAX[event.bound] or (event.bound == ONCE and about in window.about):
            window.left_out += 1
            return False
        window.told += 1
        window.about.add(about)
        return True

    def _end(self, name: str) -> None:
        window = self._windows.pop(name)
        if window.left_out:
            self.tell(events.UNTOLD, count=window.left_out, kind=name)

    def _write(self, event: JournalEvent, message: str, fields: dict[str, Value]) -> None:
        try:
            if self._to_journal:
                from systemd.journal import sendv
        except ImportError:
            # What lifts limits must not end for want of python3-systemd.
            self._to_journal = False
        if not self._to_journal:
            if event.priority < DEBUG:
                print(message, file=sys.stderr, flush=True)
            return
        sendv(
            f"MESSAGE={message}",
            f"MESSAGE_ID={event.message_id}",
            f"PRIORITY={event.priority}",
            "SYSLOG_IDENTIFIER=vff-qos",
            f"VFF_QOS_EVENT={event.name}",
            *(
                f"VFF_QOS_{name.upper()}={one}"
                for name, value in fields.items()
                for one in (value if isinstance(value, tuple) else (value,))
                if one != ""
            ),
        )


def _text(value: Value) -> str:
    return " and ".join(value) if isinstance(value, tuple) else str(value)


def notify(state: str) -> None:
    """Tell systemd (``READY=1``, ``WATCHDOG=1``, ``STATUS=...``); nothing outside of it."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon

        daemon.notify(state)
