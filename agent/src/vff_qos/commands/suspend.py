"""``vff-qos suspend``: lifts all limits in the kernel, whatever else is broken."""

from __future__ import annotations

import os
import shutil
import sys

from .killswitch import suspend
from .node import Node

#: Whoever holds the lock for so long hangs; nobody works for that long.
_PATIENCE_S = 2.0


def lift_limits(node: Node) -> int | None:
    """Suspend, whatever is broken; returns how many flows are unlimited now, None if all were.

    A run of the role that is not confirmed would start the units again: its way back ends, too.
    """
    try:
        shutil.rmtree(node.paths.kept)
    except FileNotFoundError:
        pass
    except OSError as error:  # the limits are what counts
        print(f"warning: {node.paths.kept}: {os.strerror(error.errno or 0)}", file=sys.stderr)
    node.lock.patience_s = _PATIENCE_S
    count = suspend(node.any_settings, node.any_state, node.lock, node.journal)
    if node.any_state.is_forgetful:
        node.stop_agent("the state cannot say that nobody is to be limited")
    return count
