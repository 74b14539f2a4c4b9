"""Books what users have moved before a command takes their classes away."""

from __future__ import annotations

import contextlib
import time

from ..core import events
from ..core.layout import Layout
from ..core.minor_table import MinorTable
from ..core.settings import Settings
from ..errors import QosError, Refused
from ..kernel.devices import shaping_devices
from ..name_hashing import people_of
from ..state import KERNEL_RECORD
from .node import Node


def book_now(node: Node, settings: Settings) -> None:
    """Book what has passed until now; what stands in the way is told and stops nobody."""
    devices: tuple[int, ...] = ()
    # Without a device of ours there is no class, and accounts begin with nothing.
    with contextlib.suppress(Refused):
        devices = shaping_devices(settings)
    state = node.any_state
    try:
        # Of the tree that is there: the settings may name another handle by now.
        record = state.get_value(KERNEL_RECORD) or {}
        layout = Layout(record.get("major") or settings.major, record.get("trees", 1))
        with node.lock:
            tables = [node.tc.sent_bytes(index, *layout) for index in devices]
            up, down = tables or (MinorTable(), MinorTable())
            people = people_of(state)
            state.accounts.book_all(state.owners(), (up, down), time.time(), people=people)
    except QosError as error:
        effect = "what users have moved since the last reading may not be counted"
        node.warn(events.STATE, str(error), effect)
