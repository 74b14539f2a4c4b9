"""Fair use and quotas: when penalties begin and end."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vff_qos.core.document import Document
from vff_qos.core.policy.model import NO_TERMS, Limits
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.policy.periods import BUCKETS, CELLS, Window, period
from vff_qos.core.policy.terms import BLOCKED, Quota, Rule, Terms, parse_terms
from vff_qos.core.policy.usage import (
    QUOTA,
    Change,
    Ledger,
    Row,
    Usage,
    levels,
    rule_origin,
)
from vff_qos.errors import ConfigError

BERLIN = ZoneInfo("Europe/Berlin")
GB, HOUR, MINUTE = 10**9, 3600.0, 60.0
START = datetime(2026, 11, 2, 12, 0, tzinfo=BERLIN).timestamp()
LIMITS = Limits(20_000_000, 50_000_000)


def terms(text: str) -> Terms:
    """Terms from YAML, where ``slow`` and ``crawl`` are plans."""
    doc = Document(text.encode(), "policy.yml")
    return parse_terms(doc, (), doc.data, ("slow", "crawl"))


VOLUME = terms("fair_use: [{more_than: 20GB, within: 24h, then: slow, for: 1h}]")
RATE = terms('fair_use: [{above: "95%", during: 15min, then: slow, for: 1h}]')
MONTHLY = terms("quota: {limit: 100GB, per: month, reset: 1, then: slow}")


class User:
    """One user with one class, and the clock."""

    def __init__(self, of: Terms, now: float = START, limits: Limits = LIMITS) -> None:
        self.terms, self.limits, self.now = of, limits, now
        self.up = self.down = 0
        self.held = False
        self.ledger = Ledger(zone=BERLIN)
        self.round()

    def round(self, minor: int = 7) -> list[Change]:
        self.ledger.open({minor: self.up}, {minor: self.down}, self.now)
        changes = self.ledger.observe("a@x", minor, self.terms, self.limits, self.held)
        self.ledger.close()
        return changes

    def move(self, seconds: float, down: int = 0, up: int = 0) -> list[Change]:
        """Let time go by and bytes through the class; what the round behind it says."""
        self.now += seconds
        self.down, self.up = self.down + down, self.up + up
        return self.round()

    def full_speed(self, seconds: float, share: float = 1.0) -> list[Change]:
        return self.move(seconds, int(50_000_000 / 8 * seconds * share))

    def restart(self) -> None:
        """What is stored goes through JSON into a new ledger."""
        rows = [
            Row(
                key,
                7,
                *self.ledger.seen(7),
                Usage.from_json(self.terms, json.loads(json.dumps(u.to_json()))),
            )
            for key, u in self.ledger.users.items()
        ]
        self.ledger = Ledger(rows, self.ledger.read_s, BERLIN)


# -- the grammar ------------------------------------------------------------------------------


def test_rules_are_read_as_people_write_them() -> None:
    found = terms(
        "fair_use:\n"
        "- {more_than: 20GB, within: 24h, then: slow, for: 1h}\n"
        "- {more_than: 1.5 GB, within: 1h 30min, then: crawl, for: 2d, direction: upload}\n"
        "- {above: 95%, during: 15min, then: blocked, for: 90s}\n"
        "quota: {limit: 10GiB, per: day, reset: 4, then: blocked, direction: download}\n"
    )
    assert found.rules == (
        Rule("volume", 20 * GB, 86_400, "both", "slow", 3_600),
        Rule("volume", 1_500_000_000, 5_400, "upload", "crawl", 172_800),
        Rule("rate", 95, 900, "upload", BLOCKED, 90),
        Rule("rate", 95, 900, "download", BLOCKED, 90),
    )
    assert found.quota == Quota(10 << 30, "day", 4, BLOCKED, "download")
    assert [rule.text for rule in found.rules[:3]] == [
        "more than 20 GB within 1d",
        "more than 1.5 GB of upload within 1h 30min",
        "above 95% of the upload limit during 15min",
    ]
    assert found.quota.text == "quota of 10.7 GB of download per day"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fair_use: {}", "fair_use: must be a list"),
        ("fair_use: [{then: slow}]", "fair_use.0: needs either more_than and within"),
        ("fair_use: [{more_than: 1GB, during: 1h}]", "fair_use.0: needs either"),
        ("fair_use: [{more_than: 1GB, within: 1h, then: slow}]", "fair_use.0.for: is missing"),
        ("fair_use: [{more_than: 1GB, within: 1h, for: 1h}]", "fair_use.0.then: is missing"),
        ("fair_use: [{more_than: 20, within: 1h, then: slow, for: 1h}]", "more_than: 20 is not an"),
        ("fair_use: [{more_than: 20mbit, within: 1h, then: slow, for: 1h}]", "not an amount"),
        ("fair_use: [{more_than: 1kB, within: 1h, then: slow, for: 1h}]", "out of range"),
        ("fair_use: [{more_than: 1GB, within: 5s, then: slow, for: 1h}]", "allowed: 1min to 31d"),
        ("fair_use: [{more_than: 1GB, within: soon, then: slow, for: 1h}]", "is not a time"),
        ("fair_use: [{more_than: 1GB, within: 3mon, then: slow, for: 1h}]", "'3mon' is not a time"),
        ("fair_use: [{above: 0.95, during: 1h, then: slow, for: 1h}]", "not a share of the limit"),
        ("fair_use: [{above: 100%, during: 1h, then: slow, for: 1h}]", "allowed: 10% to 99%"),
        (
            "fair_use: [{above: 95%, during: 1h, then: fast, for: 1h}]",
            "then: 'fast' is no other plan",
        ),
        ("fair_use: [{above: 95%, for: 1h, during: 1h, then: slow, x: 1}]", "x: unknown key"),
        ("quota: {per: day, then: slow}", "quota.limit: is missing"),
        ("quota: {limit: 1GB, per: year, then: slow}", "quota.per: 'year' is not one of"),
        ("quota: {limit: 1GB, per: day, reset: 24, then: slow}", "reset: 24 is not an hour"),
        ("quota: {limit: 1GB, per: month, reset: 0, then: slow}", "reset: 0 is not a day"),
        ("quota: {limit: 1GB, then: slow, direction: down}", "direction: 'down' is not one of"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace(".", r"\.")):
        terms(text)


def test_two_rules_with_one_condition_are_refused() -> None:
    rule = "{more_than: 1GB, within: 1h, then: %s, for: 1h}"
    with pytest.raises(ConfigError, match="stands twice: more than 1 GB within 1h"):
        terms(f"fair_use: [{rule % 'slow'}, {rule % 'crawl'}]")


PLANS = b"""
default: {plan: basic}
plans:
  basic: {download: 20mbit, quota: {limit: 100GB, then: "64"}}
  gold: {download: 100mbit, fair_use: [{more_than: 20GB, within: 24h, then: 64, for: 1h}]}
  free: {download: 5mbit}
  64: {upload: 64kbit, download: 64kbit}
match:
  - {pattern: "*.gold", plan: gold}
users:
  free@x: {plan: free}
  fast@x: {download: 50mbit}
  boss@x: {unlimited: true}
"""


@pytest.mark.parametrize(
    ("email", "plan"),
    [
        ("nobody@x", "basic"),
        ("fast@x", "basic"),
        ("a.gold", "gold"),
        ("free@x", None),
        ("boss@x", None),
    ],
)
def test_the_terms_are_those_of_the_plan(email: str, plan: str | None) -> None:
    policy = parse_policy(PLANS, "policy.yml")
    assert policy.terms_of(email) is (policy.terms[plan] if plan else NO_TERMS)


def test_a_plan_does_not_lead_to_itself() -> None:
    with pytest.raises(ConfigError, match=r"policy.yml:1: plans.a.quota.then: 'a' is no other"):
        parse_policy(b"plans: {a: {quota: {limit: 1GB, then: a}}, b: {}}", "policy.yml")


def test_the_examples_of_the_manual_are_a_policy() -> None:
    text = (Path(__file__).parents[2] / "docs" / "POLICY.md").read_text()
    (example,) = (
        block for block in re.findall("```yaml\n(.*?)```", text, re.DOTALL) if "fair_use" in block
    )
    policy = parse_policy(example.encode(), "POLICY.md")
    assert [rule.then for rule in policy.terms["basic"].rules] == ["slow"] * 3
    assert policy.terms["trial"].quota == Quota(GB, "day", 4, BLOCKED, "download")


# -- volumes ----------------------------------------------------------------------------------


def test_more_than_the_volume_is_slowed_for_the_time_of_the_rule() -> None:
    user = User(VOLUME)
    assert user.move(MINUTE, 20 * GB) == []
    (begin,) = user.move(MINUTE, 10_000)
    assert (begin.begins, begin.then) == (True, "slow")
    assert begin.origin == "fair_use: more than 20 GB within 1d"
    assert begin.why == "20 GB"
    assert begin.penalty[:2] == (user.now, user.now + HOUR)
    assert 20 * GB < begin.penalty.used <= 20 * GB + 10_000
    assert user.move(59 * MINUTE, 50 * GB) == []
    (end,) = user.move(MINUTE, 0)
    assert (end.begins, end.why) == (False, "its time is up")


def test_after_a_penalty_the_window_is_empty() -> None:
    user = User(VOLUME)
    assert user.move(MINUTE, 30 * GB)
    assert user.move(HOUR, 30 * GB)[0].begins is False
    assert user.move(MINUTE, 19 * GB) == []
    assert user.move(MINUTE, 2 * GB)[0].begins is True


def test_what_is_older_than_the_window_does_not_count() -> None:
    user = User(VOLUME)
    user.move(MINUTE, 15 * GB)
    assert user.move(24 * HOUR - MINUTE, 0) == []
    assert user.move(MINUTE, 6 * GB) == []
    assert user.move(2 * MINUTE, 14 * GB) == []


def test_directions_are_told_apart() -> None:
    user = User(
        terms("fair_use: [{more_than: 1GB, within: 1h, then: slow, for: 1h, direction: upload}]")
    )
    assert user.move(MINUTE, down=9 * GB, up=GB) == []
    assert user.move(MINUTE, up=10_000)[0].begins


def test_a_class_that_is_made_anew_counts_from_zero() -> None:
    user = User(VOLUME)
    user.move(MINUTE, 15 * GB)
    user.down = 0
    assert user.move(MINUTE, 4 * GB) == []
    assert user.move(MINUTE, 2 * GB)[0].penalty.used == pytest.approx(21 * GB, rel=1e-6)


def test_a_class_taken_over_starts_where_its_last_user_left_it() -> None:
    user = User(VOLUME)
    user.ledger.open({7: 0, 9: 0}, {7: 0, 9: 100 * GB}, user.now)
    user.ledger.close()
    user.down = 105 * GB
    user.now += MINUTE
    assert user.round(minor=9) == []
    assert user.ledger.users["a@x"].window(0).total(user.now) == pytest.approx(5 * GB, rel=1e-6)


def test_a_rule_that_goes_ends_its_penalty() -> None:
    user = User(VOLUME)
    user.move(MINUTE, 30 * GB)
    user.terms = Terms()
    (end,) = user.move(MINUTE, 30 * GB)
    assert (end.begins, end.why) == (False, "the plan has no such rule any more")


def test_a_user_without_a_class_is_released_on_time() -> None:
    user = User(VOLUME)
    user.move(MINUTE, 30 * GB)
    user.now += HOUR
    user.ledger.open({}, {}, user.now)
    (end,) = user.ledger.observe("a@x", None, VOLUME, LIMITS)
    assert not end.begins


# -- rates ------------------------------------------------------------------------------------


def test_full_speed_for_the_time_of_the_rule_is_slowed_and_half_speed_never() -> None:
    user = User(RATE)
    minutes = next(n for n in range(1, 30) if user.full_speed(MINUTE))
    assert 14 <= minutes <= 16
    assert not any(User(RATE).full_speed(MINUTE, 0.5) for _ in range(60))


def test_a_pause_starts_the_time_again() -> None:
    user = User(RATE)
    for _ in range(4):
        assert not any(user.full_speed(MINUTE) for _ in range(13))
        assert user.move(3 * MINUTE) == []


def test_the_limit_of_the_penalty_is_not_measured() -> None:
    user = User(RATE)
    while not user.full_speed(MINUTE):
        pass
    user.limits = Limits(1_000_000, 1_000_000)
    for _ in range(59):
        assert user.move(MINUTE, 7_500_000) == []
    assert [change.begins for change in user.move(MINUTE, 7_500_000)] == [False]
    assert user.ledger.users["a@x"].window(1).total(user.now) == 0


def test_an_override_by_hand_is_not_measured() -> None:
    user = User(RATE)
    user.held = True
    assert not any(user.full_speed(MINUTE) for _ in range(60))


def test_a_limit_that_is_lowered_does_not_make_the_past_too_fast() -> None:
    user = User(RATE)
    for _ in range(13):
        user.full_speed(MINUTE, 0.5)
    user.limits = Limits(20_000_000, 5_000_000)
    assert [bool(user.move(MINUTE, 37_500_000)) for _ in range(14)][:5] == [False] * 5


def test_the_unlimited_have_no_rate_to_be_near_to() -> None:
    user = User(RATE, limits=Limits(None, None))
    assert not any(user.full_speed(MINUTE, 100) for _ in range(30))


def test_a_long_sleep_of_the_agent_counts_as_what_it_was() -> None:
    user = User(RATE)
    assert user.full_speed(HOUR, 0.3) == []
    assert User(RATE).full_speed(HOUR)[0].begins


# -- quotas -----------------------------------------------------------------------------------


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def test_a_quota_holds_until_the_reset_at_local_midnight() -> None:
    user = User(MONTHLY, at("2026-10-20 12:00"))
    assert user.move(HOUR, 100 * GB) == []
    (begin,) = user.move(HOUR, 1)
    assert begin.begins and begin.origin == QUOTA
    # Summer time ended in between.
    assert begin.penalty.until == at("2026-11-01 00:00")
    assert user.move(at("2026-10-31 23:59") - user.now, 5 * GB) == []
    (end,) = user.move(2 * MINUTE, 0)
    assert (end.begins, end.why) == (False, "it was reset")
    assert user.move(HOUR, 99 * GB) == []


def test_what_was_moved_before_the_reset_belongs_to_the_old_period() -> None:
    user = User(MONTHLY, at("2026-10-31 23:50"))
    assert user.move(20 * MINUTE, 150 * GB) == []
    assert user.ledger.users["a@x"].quota_down == 75 * GB


def test_a_quota_that_is_full_again_at_its_reset_holds_until_the_next() -> None:
    user = User(MONTHLY, at("2026-10-20 12:00"))
    (first,) = user.move(HOUR, 150 * GB)
    assert user.move(at("2026-10-31 23:59") - user.now, 0) == []
    (again,) = user.move(2 * MINUTE, 250 * GB)
    assert again.begins and again.penalty.since == first.penalty.since
    assert again.penalty.until == at("2026-12-01 00:00")


def test_a_higher_quota_releases_at_once_and_none_too() -> None:
    for later, why in (
        (terms("quota: {limit: 200GB, then: slow}"), "its limit is higher now"),
        (Terms(), "the plan has no such quota any more"),
    ):
        user = User(MONTHLY)
        assert user.move(HOUR, 150 * GB)[0].begins
        user.terms = later
        (end,) = user.move(MINUTE)
        assert (end.begins, end.why) == (False, why)


def test_a_clock_set_back_gives_no_second_quota() -> None:
    user = User(MONTHLY, at("2026-11-01 00:05"))
    user.move(MINUTE, 90 * GB)
    assert user.move(-10 * MINUTE, 5 * GB) == []
    assert user.move(11 * MINUTE, 6 * GB)[0].begins


@pytest.mark.parametrize(
    ("per", "reset", "now", "start", "end", "zone"),
    [
        ("month", 1, "2026-12-31 23:59", "2026-12-01 00:00", "2027-01-01 00:00", "Europe/Berlin"),
        ("month", 31, "2027-02-27 12:00", "2027-01-31 00:00", "2027-02-28 00:00", "Europe/Berlin"),
        ("month", 31, "2027-02-28 00:00", "2027-02-28 00:00", "2027-03-31 00:00", "Europe/Berlin"),
        ("month", 30, "2028-02-29 06:00", "2028-02-29 00:00", "2028-03-30 00:00", "Europe/Berlin"),
        ("day", 0, "2026-10-25 12:00", "2026-10-25 00:00", "2026-10-26 00:00", "Europe/Berlin"),
        ("day", 4, "2026-03-29 03:30", "2026-03-28 04:00", "2026-03-29 04:00", "Europe/Berlin"),
        # The hour from 2 to 3 is left out: the day begins when it would have.
        ("day", 2, "2026-03-29 03:00", "2026-03-29 03:00", "2026-03-30 02:00", "Europe/Berlin"),
        # The hour from 2 to 3 comes twice: the first one counts.
        ("day", 2, "2026-10-25 02:30", "2026-10-25 02:00", "2026-10-26 02:00", "Europe/Berlin"),
        # Midnight itself is left out.
        ("day", 0, "2026-09-06 12:00", "2026-09-06 01:00", "2026-09-07 00:00", "America/Santiago"),
    ],
)
def test_periods(per: str, reset: int, now: str, start: str, end: str, zone: str) -> None:
    tz = ZoneInfo(zone)
    assert period(per, reset, at(now, tz), tz) == (at(start, tz), at(end, tz))


@given(
    st.sampled_from(["Europe/Berlin", "America/Santiago", "Asia/Beirut", "Australia/Lord_Howe"]),
    st.one_of(
        st.tuples(st.just("day"), st.integers(0, 23)),
        st.tuples(st.just("month"), st.integers(1, 31)),
    ),
    st.integers(1_500_000_000, 2_100_000_000),
)
def test_periods_meet_without_gap_and_begin_at_the_reset(
    zone: str, kind: tuple[str, int], now: int
) -> None:
    tz = ZoneInfo(zone)
    start, end = period(*kind, now, tz)
    assert start <= now < end
    assert period(*kind, end, tz)[0] == end
    assert period(*kind, start - 1, tz)[1] == start
    assert period(*kind, start, tz) == (start, end)
    assert end - start <= 31 * 86_400 + 2 * 3_600
    begins = datetime.fromtimestamp(start, tz)
    if kind[0] == "month":
        following = datetime.fromtimestamp(start + 86_400 + 7_200, tz)
        assert begins.day == kind[1] or following.day <= 2
        assert begins.hour in (0, 1)


# -- several at once --------------------------------------------------------------------------


def test_every_penalty_is_one_of_its_own() -> None:
    both = terms(
        "fair_use:\n"
        "- {more_than: 1GB, within: 1h, then: crawl, for: 1h}\n"
        "- {more_than: 5GB, within: 24h, then: slow, for: 12h}\n"
        "quota: {limit: 10GB, then: blocked}\n"
    )
    user = User(both)
    found: dict[str, str] = {}

    def after(seconds: float, down: int) -> list[str]:
        for change in user.move(seconds, down):
            if change.begins:
                found[change.origin] = change.then
            else:
                del found[change.origin]
        return sorted(found.values())

    assert after(MINUTE, 2 * GB) == ["crawl"]
    assert after(MINUTE, 4 * GB) == ["crawl", "slow"]
    assert after(HOUR, 0) == ["slow"]
    assert after(MINUTE, 5 * GB) == [BLOCKED, "crawl", "slow"]


def test_levels_tell_how_far_a_user_is() -> None:
    of = terms(
        "fair_use:\n"
        "- {more_than: 20GB, within: 24h, then: slow, for: 1h}\n"
        "- {above: 90%, during: 15min, then: slow, for: 2h, direction: download}\n"
        "quota: {limit: 4GB, then: blocked}\n"
    )
    user = User(of)
    user.full_speed(MINUTE)
    user.move(MINUTE, 5 * GB + 25 * 10**6)
    volume, rate, quota = levels(user.ledger.users["a@x"], user.now, BERLIN)
    assert (volume.rule, volume.used, volume.until) == (of.rules[0].text, "5.4 GB", None)
    assert volume.share == pytest.approx(5.4 / 20)
    assert (rate.used, rate.share) == ("2min at the limit", pytest.approx(120 / 810))
    assert (quota.used, quota.share) == ("5.4 GB", pytest.approx(5.4 / 4))
    assert quota.until == at("2026-12-01 00:00")
    assert levels(user.ledger.users["a@x"], quota.until, BERLIN)[2].share == 0


# -- properties -------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.integers(5, 7_200),  # seconds
        st.integers(0, 8_000),  # MB down
        st.integers(0, 2_000),  # MB up
        st.sampled_from(["", "", "", "", "restart", "rebuilt"]),
    ),
    min_size=1,
    max_size=120,
)
RULES = terms(
    "fair_use:\n"
    "- {more_than: 20GB, within: 24h, then: slow, for: 1h}\n"
    "- {more_than: 5GB, within: 1h, then: crawl, for: 30min, direction: download}\n"
    "- {above: 90%, during: 15min, then: slow, for: 2h}\n"
)


def walk(user: User, steps: list[tuple[int, int, int, str]]) -> Iterator[list[Change]]:
    for seconds, down, up, what in steps:
        if what == "restart":
            user.restart()
        elif what == "rebuilt":
            user.up = user.down = 0
        yield user.move(seconds, down * 10**6, up * 10**6)


@settings(deadline=None)
@given(STEPS)
def test_a_penalty_begins_once_and_lasts_its_time(steps: list[tuple[int, int, int, str]]) -> None:
    user = User(RULES)
    longest = {rule_origin(rule.text): rule.for_s for rule in RULES.rules}
    since: dict[str, float] = {}
    for changes in walk(user, steps):
        for change in changes:
            if change.begins:
                assert change.origin not in since
                since[change.origin] = user.now
            else:
                assert user.now - since.pop(change.origin) >= longest[change.origin]
        # None outlives its time by more than a round.
        usage = user.ledger.users.get("a@x", Usage(RULES))
        assert {rule_origin(text) for text in usage.penalties} == since.keys()
        assert all(penalty.until > user.now for penalty in usage.penalties.values())


@settings(deadline=None)
@given(STEPS)
def test_no_byte_is_punished_twice_by_one_rule(steps: list[tuple[int, int, int, str]]) -> None:
    user = User(RULES)
    volumes = {rule_origin(rule.text): rule for rule in RULES.rules if rule.kind == "volume"}
    # What a rule may still hold against the user: moved while it had no penalty in force.
    open_bytes = dict.fromkeys(volumes, 0)
    moments: dict[str, list[tuple[float, float, int]]] = {text: [] for text in volumes}
    punished: set[str] = set()
    for (_s, down, up, _what), changes in zip(steps, walk(user, steps), strict=True):
        for text, rule in volumes.items():
            moved = (down if rule.direction == "download" else down + up) * 10**6
            if text not in punished:
                open_bytes[text] += moved
                moments[text].append((user.now - _s, user.now, moved))
        for change in changes:
            if change.origin in volumes and change.begins:
                rule = volumes[change.origin]
                assert rule.threshold < change.penalty.used <= open_bytes[change.origin]
                # Nor is anything remembered for longer than the window.
                recent = sum(
                    moved
                    for _start, end, moved in moments[change.origin]
                    if end > user.now - rule.window_s
                )
                assert change.penalty.used <= recent
                open_bytes[change.origin], moments[change.origin] = 0, []
                punished.add(change.origin)
            elif change.origin in volumes:
                punished.discard(change.origin)


@settings(deadline=None)
@given(STEPS)
def test_a_restart_changes_nothing(steps: list[tuple[int, int, int, str]]) -> None:
    always = [(s, d, u, "restart" if w != "rebuilt" else w) for s, d, u, w in steps]
    never = [(s, d, u, "" if w == "restart" else w) for s, d, u, w in steps]
    restarted, one = User(RULES), User(RULES)
    # Who was never seen is counted from the first round after the restart.
    assert restarted.move(1, 1) == one.move(1, 1) == []
    assert list(walk(restarted, always)) == list(walk(one, never))


@given(
    st.lists(st.tuples(st.integers(-50, 400), st.integers(0, 10**7)), max_size=80),
    st.sampled_from([60.0, 900.0, 86_400.0]),
)
def test_a_window_never_holds_more_than_came_in_it(
    steps: list[tuple[int, int]], window_s: float
) -> None:
    rule = Rule("volume", 10**6, int(window_s), "both", "slow", 60)
    window, now, came = Window(rule, array("I", bytes(4 * CELLS))), START, []
    for seconds, amount in steps:
        start, now = now, now + seconds
        window.add(min(start, now), now, amount)
        came.append((now, amount))
        total = window.total(now)
        assert total <= sum(a for _when, a in came)
        if all(step >= 0 for step, _amount in steps):
            assert total <= sum(a for when, a in came if when > now - window_s)
            surely = now - window_s * (1 - 1 / BUCKETS)
            assert total >= sum(a for when, a in came if when - 400 > surely)


def test_what_is_idle_is_forgotten() -> None:
    user = User(VOLUME)
    user.move(MINUTE, GB)
    assert user.ledger.forget_idle() == []
    user.move(25 * HOUR)
    assert user.ledger.forget_idle() == ["a@x"]
    assert user.ledger.users == {}


def test_ten_thousand_users_fit() -> None:
    ledger = Ledger(zone=BERLIN)
    counters: dict[int, int] = dict.fromkeys(range(2, 10_002), 0)
    for round_ in range(3):
        counters = {minor: value + 10**6 for minor, value in counters.items()}
        ledger.open(counters, counters, START + 60 * round_)
        for minor in counters:
            assert ledger.observe(f"user{minor}@x", minor, RULES, LIMITS) == []
        ledger.close()
    assert len(ledger.users) == 10_000


def test_what_flows_moved_in_doubt_counts_for_whoever_has_them_in_the_end() -> None:
    of = terms("quota: {limit: 1GB, per: day, then: blocked}\n")
    ledger = Ledger(zone=BERLIN)
    doubted, mine = 50, 7

    def look(at: float, in_doubt: int, left: dict[int, set[str]]) -> list[Change]:
        ledger.open({mine: 0, doubted: 0}, {mine: 0, doubted: in_doubt}, at)
        ledger.settle([doubted], left)
        changes = ledger.observe("a@x", mine, of, LIMITS)
        ledger.close()
        return changes

    assert look(START, 0, {}) == []
    # Two looks long nobody knows whose it is; then it is all the user's, once.
    assert look(START + 60, 600_000_000, {}) == []
    assert look(START + 120, 1_200_000_000, {}) == []
    (change,) = look(START + 180, 1_200_000_000, {doubted: {"a@x"}})
    assert change.begins
    assert look(START + 240, 1_200_000_000, {doubted: {"a@x"}}) == []


def test_two_users_share_what_their_address_moved_in_doubt() -> None:
    of = terms("quota: {limit: 1GB, per: day, then: blocked}\n")
    ledger = Ledger(zone=BERLIN)
    for at, in_doubt, left in ((0, 0, {}), (60, 1_600_000_000, {50: {"a@x", "b@x"}})):
        ledger.open({7: 0, 8: 0, 50: 0}, {7: 0, 8: 0, 50: in_doubt}, START + at)
        ledger.settle([50], left)
        changes = [
            ledger.observe(f"{who}@x", minor, of, LIMITS) for who, minor in (("a", 7), ("b", 8))
        ]
        ledger.close()
    # 800 MB each: below the quota.
    assert changes == [[], []]
    assert {key for key in ledger.users} == {"a@x", "b@x"}
