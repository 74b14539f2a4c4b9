"""``vff-qos suspend``: lifts all limits in the kernel, whatever else is broken."""

from __future__ import annotations

from .killswitch import suspend
from .node import Node

#: Whoever holds the lock for so long hangs; nobody works for that long.
_PATIENCE_S = 2.0


def lift_limits(node: Node) -> int | None:
    """Suspend, whatever is broken; returns how many flows are unlimited now, None if all were."""
    node.lock.patience_s = _PATIENCE_S
    count = suspend(node.any_settings, node.any_state, node.lock, node.journal)
    if node.any_state.is_forgetful:
        node.stop_agent("the state cannot say that nobody is to be limited")
    return count
