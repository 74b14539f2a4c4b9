"""Accounts: whatever becomes of classes and agents, each user gets what they have moved."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vff_qos.core.accounts import (
    DOWNLOAD,
    IN_DOUBT,
    NEWCOMERS,
    UNCLASSIFIED,
    UNKNOWN,
    UPLOAD,
    Booking,
    booked_at,
    day_of,
    day_start,
    entries,
    gone,
    hour_of,
    hour_start,
    shares,
    whose,
)
from vff_qos.core.owners import DEFAULT_SHARED, PARKED, RESTRICTED_KEY, SPARE, Minors, Owner
from vff_qos.state import State

BERLIN, KATHMANDU = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")
NOON = datetime(2026, 11, 26, 12, tzinfo=timezone.utc).timestamp()


# -- one reading ----------------------------------------------------------------------------------


def test_only_what_is_above_the_meter_is_new() -> None:
    found = entries({7: 150, 8: 40, 9: 5}, {7: 100, 8: 40}, lambda minor: (f"user{minor}",))
    assert list(found) == [Booking(7, 150, [("user7", 50)]), Booking(9, 5, [("user9", 5)])]


def test_a_counter_below_its_meter_is_of_a_new_class() -> None:
    (found,) = entries({7: 30}, {7: 100}, lambda _minor: ("a",))
    assert found == Booking(7, 30, [("a", 30)])
    assert list(entries({7: 0}, {7: 100}, lambda _minor: ("a",))) == [Booking(7, 0, [])]


def test_the_ceiling_of_the_node_is_nobodys_and_not_counted_twice() -> None:
    assert list(entries({0: 10, 1: 10}, {}, lambda _minor: ("a",))) == []


def test_what_has_no_account_yet_waits_in_the_counter() -> None:
    assert list(entries({7: 30}, {7: 10}, lambda _minor: ())) == []


def test_parts_add_up() -> None:
    assert shares(11, ["a", "b", "c"]) == [("a", 4), ("b", 4), ("c", 3)]


def test_only_classes_that_are_gone_lose_their_meter() -> None:
    assert gone({7: 100, 8: 100, 9: 0}, {8: None}) == [7]


@pytest.mark.parametrize(
    ("minor", "owner", "accounts"),
    [
        (7, Owner("a@x", 7), ("a@x",)),
        (7, Owner("a@x", 7, PARKED), ("a@x",)),
        (7, None, (UNKNOWN,)),
        (7, Owner(SPARE + "7", 7, PARKED), (UNKNOWN,)),
        (0xFFFE, None, (UNCLASSIFIED,)),
        (0xFFFD, Owner(DEFAULT_SHARED, 0xFFFD), (NEWCOMERS,)),
        # Of many addresses nobody can tell whose it is.
        (0xFFFC, Owner(RESTRICTED_KEY, 0xFFFC), (IN_DOUBT,)),
        (9, Owner(RESTRICTED_KEY + "0a000001", 9), ["a@x", "b@x"]),
        (10, Owner(RESTRICTED_KEY + "0a000002", 10), ()),
        (10, Owner(RESTRICTED_KEY + "0a000002", 10, PARKED), (IN_DOUBT,)),
    ],
)
def test_whose_a_class_is(minor: int, owner: Owner | None, accounts: object) -> None:
    left = {9: {"b@x", "a@x"}, 0xFFFC: {"a@x"}}
    assert whose(minor, owner, left, False) == accounts


def test_what_nobody_claimed_within_the_hour_is_in_doubt() -> None:
    assert whose(9, Owner(RESTRICTED_KEY + "0a000001", 9), {}, True) == (IN_DOUBT,)


# -- hours and days -------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [timezone.utc, BERLIN, KATHMANDU])
def test_hours_and_days_begin_when_clocks_on_the_wall_do(zone: ZoneInfo) -> None:
    for step in range(0, 3 * 86_400, 1_234):
        at = NOON + step
        local = datetime.fromtimestamp(at, zone)
        begins = local.replace(minute=0, second=0, microsecond=0)
        assert hour_start(hour_of(at, zone)) == begins.timestamp()
        assert day_start(day_of(at, zone), zone) == begins.replace(hour=0).timestamp()


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc).timestamp()
    hours = [hour_of(first + n * 3_600, BERLIN) for n in range(3)]
    assert [datetime.fromtimestamp(hour_start(h), BERLIN).hour for h in hours] == [2, 2, 3]
    assert len({day_of(first + n * 3_600, BERLIN) for n in range(3)}) == 1


def test_what_ended_with_the_hour_is_booked_in_it() -> None:
    assert booked_at(NOON - 60, NOON + 1) < NOON
    assert booked_at(NOON - 1, NOON + 60) > NOON
    assert booked_at(None, NOON) == NOON
    # A clock that was set back, and an agent that comes after a week.
    assert booked_at(NOON + 9, NOON) == NOON
    assert booked_at(NOON - 7 * 86_400, NOON) == NOON - 300


# -- everything that can happen to a class, against the truth -----------------------------------


#: Alike often enough that a new class reaches what the old one had.
SIZES = st.one_of(st.integers(1, 5), st.integers(1, 10**13))


class Node(RuleBasedStateMachine):
    """A kernel that counts, an agent that dies at any time, and who really moved what.

    What is lost is only what a class has moved since it was last read, when somebody else deletes
    it; the truth subtracts just that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.state = State(self.directory.name)
        self.now = NOON
        self.minors = Minors(0x5100)
        #: {minor: bytes sent} of the classes that are there.
        self.kernel: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.unread: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.truth: dict[tuple[str, int], int] = {}
        self.before: dict[str, tuple[int, int]] = {}

    def teardown(self) -> None:
        self.state.close()
        self.directory.cleanup()

    @initialize()
    def first_reading(self) -> None:
        self._read_all()

    @property
    def book(self):  # type: ignore[no-untyped-def]
        return self.state.accounts

    def _owner(self, minor: int) -> tuple[str, ...]:
        owner = self.minors.by_minor.get(minor)
        return tuple(whose(minor, owner, {}, False))

    def _read(self, direction: int) -> None:
        self.book.book(direction, self.kernel[direction], self._owner, self.now)
        self.unread[direction].clear()

    def _read_all(self) -> None:
        for direction in (UPLOAD, DOWNLOAD):
            self._read(direction)

    def _lose(self, direction: int, minor: int) -> None:
        self.kernel[direction].pop(minor, None)
        lost = self.unread[direction].pop(minor, 0)
        if lost:
            self.truth[self.minors.by_minor[minor].key, direction] -= lost

    @rule(user=st.integers(0, 2), direction=st.integers(0, 1), size=SIZES)
    def moves(self, user: int, direction: int, size: int) -> None:
        """A user sends: gets a class first, as the follower gives one."""
        owner, _displaced = self.minors.take(f"user{user}@x", self.now)
        missing = [d for d in (0, 1) if owner.minor not in self.kernel[d]]
        if missing:
            # The agent has listed the classes since one was lost: it does before it makes one.
            self.book.close(self.kernel)
            for one in missing:
                self.kernel[one][owner.minor] = 0
        self.kernel[direction][owner.minor] += size
        unread = self.unread[direction]
        unread[owner.minor] = unread.get(owner.minor, 0) + size
        key = owner.key, direction
        self.truth[key] = self.truth.get(key, 0) + size

    @rule(direction=st.integers(0, 1), seconds=st.integers(0, 4_000))
    def looks(self, direction: int, seconds: int) -> None:
        self.now += seconds
        self._read(direction)

    @rule()
    def dies(self) -> None:
        """kill -9: nothing but the state is left."""
        self.state.close()
        self.state = State(self.directory.name)

    @rule(seconds=st.integers(1, 10**7))
    def clock_is_set_back(self, seconds: int) -> None:
        self.now -= seconds

    @precondition(lambda self: self.minors.by_minor)
    @rule(data=st.data())
    def is_collected(self, data: st.DataObject) -> None:
        """GC parks a user; the next newcomer gets the class."""
        minor = data.draw(st.sampled_from(sorted(self.minors.by_minor)))
        self.book.book_all(self.minors.by_minor.values(), self.kernel, self.now, {minor})
        for unread in self.unread:
            unread.clear()
        owner = self.minors.by_minor[minor]
        owner.state = PARKED
        self.minors = Minors(0x5100, self.minors.by_minor.values())

    @precondition(lambda self: any(o.state == PARKED for o in self.minors.by_minor.values()))
    @rule(data=st.data())
    def is_deleted(self, data: st.DataObject) -> None:
        """GC deletes a parked class."""
        parked = sorted(m for m, o in self.minors.by_minor.items() if o.state == PARKED)
        minor = data.draw(st.sampled_from(parked))
        self.book.book_all(self.minors.by_minor.values(), self.kernel, self.now, ())
        for direction in (0, 1):
            self.unread[direction].clear()
            self.kernel[direction].pop(minor, None)
        self.book.deleted([minor])
        self.minors.forget(self.minors.by_minor[minor])

    @precondition(lambda self: self.kernel[0] or self.kernel[1])
    @rule(data=st.data(), direction=st.integers(0, 1))
    def somebody_deletes(self, data: st.DataObject, direction: int) -> None:
        """Other software takes a class away."""
        if self.kernel[direction]:
            self._lose(direction, data.draw(st.sampled_from(sorted(self.kernel[direction]))))

    @rule(direction=st.integers(0, 1))
    def a_tree_goes(self, direction: int) -> None:
        for minor in list(self.kernel[direction]):
            self._lose(direction, minor)

    @rule()
    def reboots(self) -> None:
        """A proper one: the agent's end books what there is."""
        self.book.book_all(self.minors.by_minor.values(), self.kernel, self.now)
        for unread in self.unread:
            unread.clear()
        self.kernel = ({}, {})
        self.dies()

    @invariant()
    def accounts_never_go_back_and_never_exceed_the_truth(self) -> None:
        for account in self.book.accounts():
            had = self.before.get(account.key, (0, 0))
            assert account.upload >= had[0] and account.download >= had[1]
            self.before[account.key] = account.upload, account.download

    @invariant()
    def what_was_read_is_in_the_right_account(self) -> None:
        accounts = {a.key: (a.upload, a.download) for a in self.book.accounts()}
        for (key, direction), moved in self.truth.items():
            waits = sum(
                size
                for minor, size in self.unread[direction].items()
                if self.minors.by_minor[minor].key == key
            )
            assert accounts.get(key, (0, 0))[direction] == moved - waits, key

    @invariant()
    def hours_and_days_add_up_to_the_totals(self) -> None:
        for unit in ("hour", "day"):
            sums: dict[str, list[int]] = {}
            for key, _when, up, down in self.book.amounts(unit, -(10**9), 10**9):
                both = sums.setdefault(key, [0, 0])
                both[0] += up
                both[1] += down
            found = {a.key: [a.upload, a.download] for a in self.book.accounts()}
            assert sums == found


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=60, stateful_step_count=40)


# -- on disk --------------------------------------------------------------------------------------


def test_the_first_reading_only_notes_the_counters(tmp_path: Path) -> None:
    """A node that is upgraded, or has lost its state: nobody knows whose those bytes are."""
    book = State(str(tmp_path)).accounts
    assert book.read_at(DOWNLOAD) is None
    book.book(DOWNLOAD, {7: 10**9}, lambda _minor: ("a@x",), NOON)
    assert list(book.accounts()) == []
    book.book(DOWNLOAD, {7: 10**9 + 5}, lambda _minor: ("a@x",), NOON + 30)
    (account,) = book.accounts()
    assert (account.key, account.upload, account.download) == ("a@x", 0, 5)


def test_few_accounts_are_found_as_all_are(tmp_path: Path) -> None:
    book = State(str(tmp_path)).accounts
    book.book(UPLOAD, {}, lambda _minor: (), NOON)
    for number in range(1, 60):
        sent = {minor: number * minor for minor in range(2, 9)}
        book.book(UPLOAD, sent, lambda minor: (f"u{minor}",), NOON + number * 1_800)
    numbers = {a.key: a.number for a in book.accounts()}
    for unit, of in (("hour", hour_of), ("day", day_of)):
        span = of(NOON + 7_200), of(NOON + 90_000)
        every = [row for row in book.amounts(unit, *span) if row[0] in ("u3", "u5")]
        few = book.amounts(unit, *span, [numbers["u3"], numbers["u5"]])
        assert sorted(few) == sorted(every)
        assert every
        sums = {key: up for key, _when, up, _down in book.sums(unit, *span)}
        assert len(sums) == 7
        assert sums["u3"] == sum(up for key, _when, up, _down in every if key == "u3")


def test_what_identities_have_moved_is_one_persons_and_counted_once(tmp_path: Path) -> None:
    book = State(str(tmp_path)).accounts
    book.book(UPLOAD, {}, lambda _minor: (), NOON)
    for number in range(1, 60):
        sent = {minor: number * minor for minor in range(2, 8)}
        book.book(UPLOAD, sent, lambda minor: (f"u{minor}",), NOON + number * 1_800)

    def moved(*keys: str) -> tuple[list[int], dict[tuple[str, int], int]]:
        """Totals; and by hour and day."""
        total = [a.upload for a in book.accounts() if a.key in keys]
        times: dict[tuple[str, int], int] = {}
        for unit, of in (("hour", hour_of), ("day", day_of)):
            for key, when, up, _down in book.amounts(unit, of(NOON - 86_400), of(NOON + 200_000)):
                if key in keys:
                    times[unit, when] = times.get((unit, when), 0) + up
        return total, times

    before, since = moved("u2", "u3", "u4"), min(a.since for a in book.accounts())
    others = moved("u5", "u6", "u7")
    # u2 is the person's own name; of "p" nobody knows yet.
    people = {"u3": "u2", "u4": "u2", "u5": "p", "u6": "p", "stranger": "p"}
    for _again in range(2):
        book.join(people)
        assert moved("u2") == ([sum(before[0])], before[1])
        assert moved("p", "u7")[1] == others[1] and len(list(book.accounts())) == 3
    (joined,) = [a for a in book.accounts() if a.key == "u2"]
    assert joined.since == since
    # And it goes on.
    book.book(UPLOAD, {2: 59 * 2 + 5}, lambda _minor: ("u2",), NOON + 60 * 1_800)
    assert moved("u2")[0] == [sum(before[0]) + 5]


def test_old_hours_and_days_are_forgotten_a_few_at_a_time(tmp_path: Path) -> None:
    book = State(str(tmp_path)).accounts
    book.book(UPLOAD, {}, lambda _minor: (), NOON)
    for day in range(10):
        key = "old@x" if day < 3 else "a@x"
        book.book(UPLOAD, {7: day + 1}, lambda _minor, key=key: (key,), NOON + day * 86_400)
    now_s = NOON + 9 * 86_400

    def left() -> tuple[int, int]:
        hours, days = (list(book.amounts(unit, 0, 10**9)) for unit in ("hour", "day"))
        return len(hours), len(days)

    assert left() == (10, 10)
    book.forget(now_s, 2, 4)
    assert left() == (8, 8)
    for _ in range(5):
        book.forget(now_s, 2, 4)
    assert left() == (2, 5)
    # Who has nothing left is nobody any more; who has keeps the whole total.
    assert {a.key: a.upload for a in book.accounts()} == {"a@x": 7}
