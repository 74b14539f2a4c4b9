"""Which findings are news: each is told once when it begins, and once when it is over.

What comes and goes keeps quiet: a finding must be seen for a while before it is told, and be gone
for a while before it is over, each time longer within an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .findings import OK, Finding

#: What the journal tells when it happens, and when it is over where there is such a time: events of
#: its own do, see `core.events`.
TOLD_BY_THEMSELVES = frozenset(
    {
        "conflict", "disabled", "exhausted", "foreign_mark", "look_ups", "orders", "policy",
        "state", "suspended",
    }
)  # fmt: skip
#: Who comes back within so long has come and gone, in seconds.
AGAIN_S = 3_600.0
_LONGER = 4


class Known(NamedTuple):
    """A finding that was seen.  Times in seconds of a clock that is never set.

    ``gone_s``: when it was gone for the first time since, None while it is there.  One that is over
    is kept for `AGAIN_S`; ``times`` is how often it has come back.
    """

    sentence: str
    since_s: float
    is_told: bool = False
    gone_s: float | None = None
    times: int = 0


class News(NamedTuple):
    """What to remember of the findings, by kind, and what to tell of them."""

    known: dict[str, Known]
    begun: list[Finding]
    over: list[tuple[str, Known]]


def compare(
    known: Mapping[str, Known],
    findings: Iterable[Finding],
    now_s: float,
    about: Callable[[str], bool] = lambda kind: True,
    sure_s: float = 0.0,
    hold_s: float = 0.0,
) -> News:
    """What is new among the findings of a look.

    ``about``: which kinds this look says something of; all others stay as they are.  A finding is
    told when it was seen for ``sure_s``, and is over when it was gone for ``hold_s``.
    """
    news = News({kind: one for kind, one in known.items() if not about(kind)}, [], [])
    there = {f.kind: f for f in findings if f.level != OK and f.kind not in TOLD_BY_THEMSELVES}
    for kind in filter(about, there.keys() | known.keys()):
        one, finding = known.get(kind), there.get(kind)
        if finding is None:
            assert one is not None
            _gone(news, kind, one, now_s, hold_s)
            continue
        if one is None or (not one.is_told and one.gone_s is not None):
            one = Known(finding.sentence, now_s, times=0 if one is None else one.times + 1)
        if not one.is_told and now_s - one.since_s >= sure_s:
            one = one._replace(is_told=True, sentence=finding.sentence)
            news.begun.append(finding)
        news.known[kind] = one._replace(gone_s=None)
    return news


def _gone(news: News, kind: str, one: Known, now_s: float, hold_s: float) -> None:
    if one.gone_s is None:
        one = one._replace(gone_s=now_s)
    assert one.gone_s is not None
    gone_for_s = now_s - one.gone_s
    if one.is_told and gone_for_s >= min(hold_s * _LONGER**one.times, AGAIN_S):
        news.over.append((kind, one))
        one = one._replace(is_told=False)
    if one.is_told or gone_for_s < AGAIN_S:
        news.known[kind] = one
