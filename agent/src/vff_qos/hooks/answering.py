"""``vff-qos hooks``: answers engines where ``listen`` says, until it is told to end.

A process of its own: slow hashes, a panel's answers and strangers' HTTP never hold up the loop that
marks flows.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from ..commands.node import Node
from ..config import read_file
from ..core import events
from ..core.hooks.hook_settings import HookSettings, parse_hooks
from ..errors import ConfigError
from ..follower.memory import give_memory_back
from ..journal import Journal, notify
from ..serving import make_server
from ..sources.listener import open_listener
from .agent import Agent
from .desk import Desk, Logins, make_app
from .kicks import TrafficStats
from .panel import Panel
from .room import channel_of
from .standing import Standing
from .store import Store
from .users import Users

_FILE = "hooks.yml"
#: A login may wait for the panel, as long as it may take; others are answered meanwhile.
_THREADS = 24
_TICK_S = 1.0
_FORGET_S = 3_600.0
#: A GoProxy that reports many connections at once.
_MAX_BODY = 4 << 20


def serve(node: Node) -> None:
    """Serve until SIGTERM.  Raises ConfigError, QosError, SourceError."""
    settings = read_settings(node)
    give_memory_back()
    journal = Journal()
    store = Store(os.environ.get("STATE_DIRECTORY", ""))

    def tell() -> None:
        """Who may log in."""
        known = "" if desk.users is None else f"{len(desk.users)} users of {settings.users_file}"
        others = "who else comes is asked of the panel" if settings.auth_url else ""
        effect = ", ".join(part for part in (known, others) if part)
        journal.tell(events.HOOKS, place=settings.listen, effect=effect)

    desk = Desk(
        settings.token,
        Users(settings.users_file, journal, tell) if settings.users_file else None,
        Panel(settings, store, journal) if settings.auth_url else None,
        Agent(settings.flows, journal),
        Standing(node.paths),
        store,
        TrafficStats(settings.stats_url, settings.stats_secret, journal)
        if settings.stats_url
        else None,
        Logins(),
    )
    listener, made = open_listener(settings.listen, "", 0o660)
    server = make_server(make_app(desk), listener, _THREADS, 500, _MAX_BODY)
    server.channel_class = channel_of(settings.token)
    keeper = _Keeper(desk, settings, journal)

    def end(*_signal: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    keeper.start()
    keeper.has_looked.wait(10)
    notify("READY=1")
    tell()
    try:
        server.run()
    finally:
        keeper.is_over.set()
        server.close()
        if made:
            os.unlink(made)
        keeper.join(5)
        store.close()


def read_settings(node: Node) -> HookSettings:
    """The settings of the hooks, beside those of the node.  Raises ConfigError."""
    path = os.path.join(os.path.dirname(node.paths.settings), _FILE)
    if not os.path.exists(path):
        raise ConfigError(path, "is not there: it says who may log in (qos_hooks_enable)")
    # The account of the hooks reads it, not the agent's.
    return parse_hooks(read_file(path), path)


class _Keeper(threading.Thread):
    """What is done once a second."""

    def __init__(self, desk: Desk, settings: HookSettings, journal: Journal) -> None:
        super().__init__(name="keeper", daemon=True)
        self._desk, self._settings, self._journal = desk, settings, journal
        self.has_looked, self.is_over = threading.Event(), threading.Event()

    def run(self) -> None:
        ticks = 0
        while not self.is_over.is_set():
            self._desk.standing.tend()
            self.has_looked.set()
            self._desk.agent.tend()
            if self._desk.stats is not None:
                self._desk.stats.tend(self._desk.standing)
            if ticks % int(_FORGET_S / _TICK_S) == 0:
                self._desk.store.forget(self._settings.auth_cache_s)
            self._journal.tend()
            ticks += 1
            self.is_over.wait(_TICK_S)
        self._desk.standing.close()
