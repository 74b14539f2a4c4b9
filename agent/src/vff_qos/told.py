"""Findings into the journal, by the follower and by the collection, with one memory of what was
told: a file in the run directory, so that neither a restart nor the other process tells it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable

from .core import events
from .core.health.findings import TROUBLE, Finding
from .core.health.news import Known, News, compare
from .core.units import format_duration
from .journal import Journal
from .lock import Lock
from .runfile import replace_file

_FILE = "told.json"
#: What only a look at all classes tells; the settings, which a play writes some time before it has
#: them read.  The collection looks at them, in processes of their own.
LEFT_TO_COLLECTION = frozenset({"no_class", "not_set_up", "settings"})


def tell(
    run_dir: str,
    lock: Lock,
    journal: Journal,
    findings: Iterable[Finding],
    about: Callable[[str], bool],
    sure_s: float = 0.0,
    hold_s: float = 0.0,
) -> News:
    """Write down what is news, see `compare`.  Raises OSError if it cannot be remembered: then
    nothing is told, or it would be again and again."""
    given, now_s = list(findings), time.monotonic()
    news = compare(known := _read(run_dir), given, now_s, about, sure_s, hold_s)
    if news.known == known:
        return news
    with lock:
        # The other process may have told something just now.
        news = compare(_read(run_dir), given, now_s, about, sure_s, hold_s)
        kept = {kind: one._asdict() for kind, one in news.known.items()}
        replace_file(run_dir, _FILE, json.dumps(kept).encode())
    for finding in news.begun:
        _begin(journal, finding)
    for kind, one in news.over:
        assert one.gone_s is not None
        lasted = format_duration(max(1, round(one.gone_s - one.since_s)))
        journal.tell(events.OVER, error=one.sentence, finding=kind, lasted=lasted)
    return news


def _begin(journal: Journal, finding: Finding) -> None:
    if finding.level == TROUBLE:
        journal.tell(
            events.TROUBLE, error=finding.sentence, remedy=finding.remedy, finding=finding.kind,
            evidence="\n".join(finding.evidence),
        )  # fmt: skip
        return
    journal.tell(
        events.DEGRADED, error=finding.sentence, remedy=finding.remedy, finding=finding.kind,
        evidence="\n".join(finding.evidence),
    )  # fmt: skip


def _read(run_dir: str) -> dict[str, Known]:
    try:
        with open(os.path.join(run_dir, _FILE), encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    # Of another version of this program it may have more, or less.
    return {
        kind: Known(**{name: value for name, value in one.items() if name in Known._fields})
        for kind, one in found.items()
    }
