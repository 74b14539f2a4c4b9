"""``vff-qos metrics``: the figures of ``status`` and ``usage`` for Prometheus."""

from __future__ import annotations

import grp
import os
import sys
import time

from ..core.accounts import hour_of
from ..core.figures import Figures, select
from ..core.health.rules import judge
from ..core.settings import Settings
from ..errors import QosError, Refused
from ..metrics.exposition import exposition
from ..metrics.snapshot import Snapshot
from ..render import display_name
from ..replacing import replacing
from .facts import look
from .node import Node
from .status import MEASURE_S, describe, read_again

#: Who has moved most since the hour before this one is shown first: in seconds.
_RECENT_S = 3_600


def print_metrics(node: Node, users: int | None) -> None:
    """Write them on standard output; ``users``: so many, None: as the settings say.

    Raises Refused, KernelRefused, StateError.
    """
    snapshot, settings = read_snapshot(node)
    for piece in exposition(snapshot, settings.metrics_users if users is None else users):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def write_textfile(node: Node, path: str, users: int | None) -> None:
    """Replace a file at once: whoever reads it sees the old or the new one, whole.

    Who may read it, ``metrics_group`` says.  Raises as `print_metrics`, and QosError.
    """
    snapshot, settings = read_snapshot(node)
    most = settings.metrics_users if users is None else users
    group = settings.metrics_group
    mode, gid = (0o640, _number(group)) if group else (0o644, -1)
    try:
        # The collector reads what ends in .prom: not the file that is not whole yet.
        with replacing(path, mode, gid=gid) as file:
            for piece in exposition(snapshot, most):
                file.write(piece)
    except OSError as error:
        raise QosError(f"{path}: {os.strerror(error.errno or 0)}") from error


def read_snapshot(node: Node) -> tuple[Snapshot, Settings]:
    """Look at the node; also the settings that are in force.  Raises KernelRefused, StateError."""
    seen = look(node)
    users: list[Figures] = []
    moment = read_again(node, seen, MEASURE_S) if seen.is_set_up else None
    if moment is not None:
        users = select(moment, ((owner, display_name(owner.key)) for owner in seen.owners))
    status = describe(node, seen, judge(seen.facts), moment)
    settings = seen.settings or Settings()
    if "state" not in node.__dict__:  # there is none to be had, and the status says so
        return Snapshot(status, users), settings
    accounts, now_s = node.state.accounts, time.time()
    moved = {
        account.key: (account.upload, account.download)
        for account in accounts.accounts()
        if account.key >= " "
    }
    sums = accounts.sums("hour", hour_of(now_s - _RECENT_S), hour_of(now_s) + 1)
    recent = {key: up + down for key, _hour, up, down in sums if key in moved}
    return Snapshot(status, users, moved, recent, accounts.read_until()), settings


def _number(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refused(f"metrics_group: there is no group {group!r}") from None
