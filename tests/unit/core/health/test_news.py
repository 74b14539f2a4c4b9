"""What is news: told once when it begins and once when it is over, and quiet in between."""

from __future__ import annotations

from vff_qos.core.health.findings import DEGRADED, OK, Finding
from vff_qos.core.health.news import AGAIN_S, Known, News, compare

SURE_S, HOLD_S = 4.0, 30.0


def finding(kind: str, sentence: str = "", level: str = DEGRADED) -> Finding:
    return Finding(level, kind, sentence or f"{kind} is wrong", "mend it")


class Looker:
    """Looks as the follower does, and notes what is told: (when, what)."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.told: list[tuple[float, str]] = []
        self.news = News({}, [], [])

    def look(self, now_s: float, *kinds: str) -> None:
        self.news = compare(
            self.known, map(finding, kinds), now_s, lambda kind: kind != "other", SURE_S, HOLD_S
        )
        self.known = self.news.known
        self.told += [(now_s, f"+{one.kind}") for one in self.news.begun]
        self.told += [(now_s, f"-{kind}") for kind, _one in self.news.over]

    def looks(self, start: int, stop: int, *kinds: str) -> None:
        """A look every 5 s."""
        for now in range(start, stop, 5):
            self.look(float(now), *kinds)


def test_a_fault_is_told_once_and_once_that_it_is_over() -> None:
    looker = Looker()
    looker.looks(0, 100, "masked")
    looker.looks(100, 500)
    assert looker.told == [(5, "+masked"), (130, "-masked")]


def test_what_was_told_says_when_it_began_and_when_it_was_gone() -> None:
    looker = Looker()
    looker.looks(0, 100, "masked")
    looker.looks(100, 135)
    ((kind, one),) = looker.news.over
    assert (kind, one.sentence, one.since_s, one.gone_s) == ("masked", "masked is wrong", 0, 100)


def test_what_is_seen_once_is_not_told() -> None:
    looker = Looker()
    looker.look(0, "lag")
    looker.looks(5, 500)
    assert looker.told == []


def test_what_comes_and_goes_is_told_ever_less() -> None:
    looker = Looker()
    for start in range(0, 3_000, 60):  # 10 s there, 50 s not
        looker.looks(start, start + 10, "lag")
        looker.looks(start + 10, start + 60)
    # It is over after 30 s, then not before 120 s: it is wrong all the time.
    assert looker.told == [(5, "+lag"), (40, "-lag"), (65, "+lag")]
    looker.looks(3_000, 3_600)
    assert [what for _when, what in looker.told] == ["+lag", "-lag", "+lag", "-lag"]
    # An hour later it is as new.
    start = 3_600 + round(AGAIN_S)
    looker.looks(3_600, start)
    assert looker.known == {}
    looker.looks(start, start + 50, "lag")
    looker.looks(start + 50, start + 100)
    assert looker.told[-2:] == [(start + 5, "+lag"), (start + 80, "-lag")]


def test_a_look_says_nothing_of_what_it_does_not_see() -> None:
    looker = Looker()
    known = {"other": Known("other is wrong", 0.0, is_told=True)}
    looker.known = dict(known)
    looker.looks(0, 500, "other")
    looker.looks(500, 1_000)
    assert (looker.known, looker.told) == (known, [])


def test_without_patience_all_is_told_at_once() -> None:
    first = compare({}, [finding("no_class")], 10.0)
    assert [one.kind for one in first.begun] == ["no_class"]
    second = compare(first.known, [], 20.0)
    assert [kind for kind, _one in second.over] == ["no_class"]
    assert compare(second.known, [], 30.0).over == []


def test_what_is_only_worth_knowing_or_told_elsewhere_is_no_news() -> None:
    given = [finding("xray", level=OK), finding("policy"), finding("suspended")]
    assert compare({}, given, 0.0) == News({}, [], [])
