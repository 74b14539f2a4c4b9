"""Fair use and quotas: when penalties begin and end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.policy.model import Limits
from vff_qos.core.policy.terms import BLOCKED, Terms
from vff_qos.core.policy.usage import (
    QUOTA,
    Change,
    Ledger,
    Row,
    Usage,
    levels,
    rule_origin,
)

from .examples import BERLIN, GB, HOUR, MINUTE, START, at, terms

LIMITS = Limits(20_000_000, 50_000_000)


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
        """Let time go by and bytes through the class; what the round after it says."""
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
    assert (rate.used, quota.used) == ("2min at the limit", "5.4 GB")
    assert (rate.share, quota.share) == pytest.approx((120 / 810, 5.4 / 4))
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


@given(STEPS)
def test_a_restart_changes_nothing(steps: list[tuple[int, int, int, str]]) -> None:
    always = [(s, d, u, "restart" if w != "rebuilt" else w) for s, d, u, w in steps]
    never = [(s, d, u, "" if w == "restart" else w) for s, d, u, w in steps]
    restarted, one = User(RULES), User(RULES)
    # Who was never seen is counted from the first round after the restart.
    assert restarted.move(1, 1) == one.move(1, 1) == []
    assert list(walk(restarted, always)) == list(walk(one, never))


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
    for after_s, in_doubt, left in ((0, 0, {}), (60, 1_600_000_000, {50: {"a@x", "b@x"}})):
        ledger.open({7: 0, 8: 0, 50: 0}, {7: 0, 8: 0, 50: in_doubt}, START + after_s)
        ledger.settle([50], left)
        changes = [
            ledger.observe(f"{who}@x", minor, of, LIMITS) for who, minor in (("a", 7), ("b", 8))
        ]
        ledger.close()
    # 800 MB each: below the quota.
    assert changes == [[], []]
    assert {key for key in ledger.users} == {"a@x", "b@x"}


def test_what_two_have_used_is_one_persons() -> None:
    both = terms(
        "fair_use: [{more_than: 20GB, within: 24h, then: slow, for: 1h}]\n"
        "quota: {limit: 100GB, per: month, reset: 1, then: slow}"
    )
    one, other = User(both), User(both)
    one.move(MINUTE, down=9 * GB)
    other.move(3 * HOUR)
    other.move(MINUTE, down=10 * GB)
    mine, theirs = one.ledger.users["a@x"], other.ledger.users["a@x"]
    mine.join(theirs, other.now)
    assert mine.quota_down == 19 * GB
    assert mine.window(0).total(other.now) == pytest.approx(19 * GB, rel=1e-6)
    # One more is too much, as for anybody.
    one.now = other.now
    assert not one.move(MINUTE, down=GB // 2)
    (change,) = one.move(MINUTE, down=GB)
    assert change.begins and change.key == "a@x"
    # Each at its own time: what is old is forgotten first.
    old, new = User(VOLUME), User(VOLUME)
    old.move(MINUTE, down=9 * GB)
    new.move(3 * HOUR)
    new.move(MINUTE, down=10 * GB)
    mine = old.ledger.users["a@x"]
    mine.join(new.ledger.users["a@x"], new.now)
    assert mine.window(0).total(START + 25 * HOUR + MINUTE) == pytest.approx(10 * GB, rel=1e-6)


def test_a_later_period_and_a_longer_penalty_count() -> None:
    one, other = User(MONTHLY), User(MONTHLY)
    one.move(MINUTE, down=9 * GB)
    other.move(40 * 24 * HOUR)
    other.move(MINUTE, down=2 * GB)
    old, new = one.ledger.users["a@x"], other.ledger.users["a@x"]
    (penalty,) = [User(VOLUME).move(MINUTE, down=21 * GB)[0].penalty]
    new.penalties[QUOTA] = penalty
    old.penalties[QUOTA] = penalty._replace(until=penalty.until + 5)
    old.join(new, other.now)
    assert old.quota_down == 2 * GB and old.penalties[QUOTA].until == penalty.until + 5
    new.join(User(MONTHLY).ledger.users.get("a@x", Usage(MONTHLY)), other.now)
    assert new.quota_down == 2 * GB
