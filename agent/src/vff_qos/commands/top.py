"""``vff-qos top``: the users, live on a terminal, or once for scripts.

What is shown is computed elsewhere: `core.figures`, `core.health`, laid out by `core.screen`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

from ..config import Paths
from ..core.figures import Figures, ordered
from ..core.screen import ASCII, BLOCKS, TableRow, head, row_line, widths
from ..errors import Refused
from .status import devices_of
from .watch import Watch, headline, traffic


def once(paths: Paths, patterns: list[str], sort: str, interval_s: float, as_json: bool) -> str:
    """The table of one moment, for scripts.  Raises KernelRefused."""
    watch = Watch(paths)
    try:
        watch.look()
        watch.read_policy()
        time.sleep(interval_s)
        watch.count()
        watch.read_policy(wait=True)
        found = ordered(watch.users(patterns), sort)
        if as_json:
            return json.dumps(_as_json(watch, found), indent=1)
        return "\n".join(_as_text(watch, found, sort))
    finally:
        watch.close()


def _as_json(watch: Watch, found: list[Figures]) -> dict[str, Any]:
    return {
        "verdict": watch.level,
        "reason": watch.reason,
        "time": time.time(),
        "measured_s": round(watch.moment.seconds, 3),
        "ceil_bps": watch.ceil_bps,
        "devices": devices_of(watch.moment),
        "users": [{**one.to_json(), "plan": watch.plan(one.owner)} for one in found],
    }


def _as_text(watch: Watch, found: list[Figures], sort: str) -> list[str]:
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    glyphs = BLOCKS if utf8 else ASCII
    # One moment has no minute.
    columns = widths(shutil.get_terminal_size((100, 24)).columns, ("minute",))
    lines = [headline(watch), traffic(watch), head(columns, sort, glyphs)]
    for one in found:
        row = TableRow(one, watch.plan(one.owner), [], watch.ceil_bps)
        pieces = row_line(row, columns, glyphs)
        lines.append("".join(piece.text for piece in pieces).rstrip())
    return lines


def run(paths: Paths, patterns: list[str], sort: str, interval_s: float) -> None:
    """The live table, until somebody quits.  Raises Refused where there is no fit terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refused("this is no terminal; 'vff-qos top --once' or '--json' is for scripts")
    from .terminal import show

    show(paths, patterns, sort, interval_s)
