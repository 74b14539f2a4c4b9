"""``vff-qos usage``: what users have moved, by hour, day or month, as the agent has booked it."""

from __future__ import annotations

import csv
import io
import time
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from ..core import events
from ..core.accounts import IN_DOUBT, NEWCOMERS, UNCLASSIFIED, UNKNOWN
from ..core.figures import natural
from ..core.units import format_volume
from ..core.usage_query import (
    DAY,
    HOUR,
    MONTH,
    Query,
    Span,
    month_start,
    parse_when,
    plan_query,
    summed_up,
)
from ..errors import Refused
from ..render import local_time
from .node import Node

#: Of so many accounts each is looked up by itself.
_FEW = 20
#: Accounts of nobody, as people read them.
_NOBODYS = {
    IN_DOUBT: "(in doubt)",
    NEWCOMERS: "(newcomers)",
    UNCLASSIFIED: "(nobody's)",
    UNKNOWN: "(unknown)",
}
_LABELS = {HOUR: "%Y-%m-%d %H:00", DAY: "%Y-%m-%d", MONTH: "%Y-%m"}


def read_usage(
    node: Node,
    patterns: list[str],
    since: str | None = None,
    until: str | None = None,
    by: str | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """Everything ``usage`` shows, as JSON; ``exact``: what looks as a pattern is a name, which need
    not have moved anything yet.

    Raises Refused, StateError, ConfigError.
    """
    now_s = time.time()
    # A name stands for itself, and with qos_hash_emails for its hash.
    patterns = [*dict.fromkeys(name for p in patterns for name in (p, node.name_of(p)))]
    query = _query(node, since, until, by, now_s)
    if node.state.trouble:
        effect = "hours and days of before are shown when it is back"
        node.warn(events.STATE_MOVED, node.state.trouble, effect)
    accounts = node.state.accounts
    wanted = [
        account
        for account in accounts.accounts()
        if (account.key in patterns if exact else _fits(account.key, patterns))
    ]
    if patterns and not wanted and not exact:
        raise Refused(f"nothing was ever counted for {' or '.join(map(repr, patterns))}")
    numbers = [account.number for account in wanted]
    rows: dict[str, list[tuple[int, int, int]]] = {account.key: [] for account in wanted}
    if len(numbers) <= _FEW:
        amounts = accounts.amounts(query.unit, query.first, query.end, numbers)
    elif by is None:
        amounts = accounts.sums(query.unit, query.first, query.end)
    else:
        amounts = accounts.amounts(query.unit, query.first, query.end)
    for key, *row in amounts:
        if key in rows:
            rows[key].append((row[0], row[1], row[2]))
    users: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for key, found in rows.items():
        if not found and not (patterns and len(rows) <= _FEW):
            continue
        one = {"email": _NOBODYS.get(key, key), **_amount(summed_up(found, query), by)}
        (others if key in _NOBODYS else users).append(one)
    for group in (users, others):
        group.sort(key=lambda one: natural(one["email"]))
    return {**_head(node, query, by, now_s), "users": users, "others": others}


def read_totals(
    node: Node, since: str | None = None, until: str | None = None, by: str | None = None
) -> dict[str, Any]:
    """The same of all users together: ``users`` is one record, without an email, as is ``others``.

    Raises as `read_usage`.
    """
    now_s = time.time()
    query = _query(node, since, until, by, now_s)
    found = _head(node, query, by, now_s)
    for name in ("users", "others"):
        rows = node.state.accounts.totals(query.unit, query.first, query.end, users=name == "users")
        found[name] = _amount(summed_up(rows, query), by)
    return found


def _head(node: Node, query: Query, by: str | None, now_s: float) -> dict[str, Any]:
    """What a table is of."""
    return {
        "since": query.since_s,
        "until": min(query.until_s, now_s),
        "by": by,
        "read": node.state.accounts.read_until(),
    }


def _amount(spans: list[Span], by: str | None) -> dict[str, Any]:
    return {
        "upload_bytes": sum(span.upload_bytes for span in spans),
        "download_bytes": sum(span.download_bytes for span in spans),
        "spans": [span._asdict() for span in spans] if by else [],
    }


def _query(node: Node, since: str | None, until: str | None, by: str | None, now_s: float) -> Query:
    times = {"--since": month_start(now_s), "--until": now_s}
    for option, text in (("--since", since), ("--until", until)):
        if text is not None:
            try:
                times[option] = parse_when(text, now_s)
            except ValueError as error:
                raise Refused(f"{option}: {error}") from error
    try:
        return plan_query(
            times["--since"], times["--until"], by, now_s,
            node.settings_in_force.usage_hourly_days,
        )  # fmt: skip
    except ValueError as error:
        raise Refused(str(error)) from error


def _fits(key: str, patterns: list[str]) -> bool:
    """Whether an account is asked for; without a pattern those of nobody are, too."""
    if not patterns:
        return True
    return key >= " " and any(key == p or fnmatchcase(key, p) for p in patterns)


def render(found: dict[str, Any]) -> str:
    """The same for people."""
    by = found["by"]
    since, until = local_time(found["since"]), local_time(found["until"])
    read = found["read"]
    counted = "nothing was counted yet" if read is None else f"counted until {local_time(read)}"
    lines = [f"usage from {since} to {until}; {counted}"]
    time_head = f" {by:<16}" if by else ""
    lines.append(f"{'user':<32}{time_head} {'upload':>10} {'download':>10} {'total':>10}")
    for one in [*found["users"], *found["others"]]:
        if not by:
            lines.append(_line(one["email"], "", one))
        for span in one["spans"]:
            when = datetime.fromtimestamp(span["since"]).strftime(_LABELS[by])
            lines.append(_line(one["email"], f" {when:<16}", span))
    users = found["users"]
    total = {name: sum(one[name] for one in users) for name in ("upload_bytes", "download_bytes")}
    lines.append(_line(f"all {len(users)} users", " " * len(time_head), total))
    return "\n".join(lines)


def _line(name: str, when: str, moved: dict[str, Any]) -> str:
    up, down = moved["upload_bytes"], moved["download_bytes"]
    shown = (format_volume(size) for size in (up, down, up + down))
    return f"{name:<32}{when}" + "".join(f" {size:>10}" for size in shown)


def to_csv(found: dict[str, Any]) -> str:
    """The same as a table for programs: exact bytes, times with their zone."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["user", "since", "until", "upload_bytes", "download_bytes"])
    for one in [*found["users"], *found["others"]]:
        for span in one["spans"] if found["by"] else [{**found, **one}]:
            times = (
                datetime.fromtimestamp(span[end]).astimezone().isoformat(timespec="seconds")
                for end in ("since", "until")
            )
            table.writerow([one["email"], *times, span["upload_bytes"], span["download_bytes"]])
    return text.getvalue()
