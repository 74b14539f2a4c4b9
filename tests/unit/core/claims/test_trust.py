"""Who gets a flow, whatever words come in whatever order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims import trust
from vff_qos.core.claims.trust import (
    DOUBTED,
    FIXED,
    HINTED,
    PLAIN,
    TOLD,
    VOUCH_S,
    VOUCHED,
    WEAK,
    Verdict,
    Vouchers,
    address_key,
    judge,
)
from vff_qos.core.flows import record as flags
from vff_qos.core.flows.record import FOREIGN, MINOR, PROVISIONAL, RESTRICTED, owned, rank

ALICE, BOB, NEW, SHARED = 7, 8, 0, 99
RANKS = range(6)


def held(minor: int, word_rank: int, flags: int = 0) -> int:
    return owned(0, minor, word_rank, flags)


@pytest.mark.parametrize("word_rank", RANKS)
@pytest.mark.parametrize("claimed", [ALICE, NEW, None])
def test_a_mark_of_other_software_is_never_touched(claimed: int | None, word_rank: int) -> None:
    assert judge(FOREIGN, claimed, word_rank) is Verdict.FOREIGN


@pytest.mark.parametrize("word_rank", RANKS)
@pytest.mark.parametrize("claimed", [ALICE, BOB, NEW, None])
def test_no_word_takes_what_the_kernel_itself_gives(claimed: int | None, word_rank: int) -> None:
    assert judge(held(ALICE, FIXED), claimed, word_rank) is Verdict.KEEP


@pytest.mark.parametrize("record", [0, held(BOB, DOUBTED, PROVISIONAL)], ids=["new", "in advance"])
@pytest.mark.parametrize("word_rank", RANKS)
def test_what_is_nobodys_goes_to_any_word_but_a_doubted_one(record: int, word_rank: int) -> None:
    verdict = Verdict.RESTRICT if word_rank == DOUBTED else Verdict.GIVE
    assert judge(record, ALICE, word_rank) is verdict


@pytest.mark.parametrize(("word", "before"), list(itertools.product(RANKS, RANKS)))
def test_a_better_word_takes_a_flow_and_a_worse_one_does_not(word: int, before: int) -> None:
    verdict = judge(held(ALICE, before), BOB, word)
    if word > before and word > HINTED:
        assert verdict is Verdict.GIVE
    elif before > HINTED and word < before:
        assert verdict is Verdict.KEEP
    elif before == HINTED:
        # A hint may be a lie of who shares the address: nobody gets it before a better word.
        assert verdict is Verdict.RESTRICT
    elif word == before > HINTED:
        assert verdict is (Verdict.GIVE if word == WEAK else Verdict.CONFLICT)


@pytest.mark.parametrize("word_rank", RANKS)
@pytest.mark.parametrize("before", [HINTED, VOUCHED, WEAK, PLAIN, TOLD])
def test_the_owners_own_word_changes_nothing_for_the_worse(before: int, word_rank: int) -> None:
    assert judge(held(ALICE, before), ALICE, word_rank) in (Verdict.KEEP, Verdict.GIVE)


@pytest.mark.parametrize("before", [DOUBTED, HINTED, VOUCHED, WEAK, PLAIN])
def test_a_restriction_ends_with_the_next_better_word(before: int) -> None:
    record = held(SHARED, before, RESTRICTED)
    for word_rank in RANKS:
        frees = word_rank > before and word_rank > HINTED
        verdict = Verdict.GIVE if frees else Verdict.RESTRICT
        assert judge(record, ALICE, word_rank) is verdict


def test_a_line_that_names_nobody_touches_no_flow_that_is_somebodys() -> None:
    for word_rank in RANKS:
        assert judge(held(ALICE, VOUCHED), None, word_rank) is Verdict.KEEP
        assert judge(0, None, word_rank) is Verdict.RESTRICT
        assert judge(held(ALICE, DOUBTED, PROVISIONAL), None, word_rank) is Verdict.RESTRICT


def follow(words: list[tuple[int, int]]) -> int:
    """What a flow is after (user, rank) in this order, as the assigner does it."""
    record = 0
    for claimed, word_rank in words:
        verdict = judge(record, claimed, word_rank)
        if verdict is Verdict.GIVE:
            record = owned(record, claimed, word_rank)
        elif verdict is Verdict.CONFLICT:
            record = owned(record, SHARED, word_rank, RESTRICTED)
        elif verdict is Verdict.RESTRICT:
            before = rank(record) if record & MINOR else DOUBTED
            record = owned(record, SHARED, before, RESTRICTED)
    return record


TAINTED = st.tuples(st.sampled_from([ALICE, BOB, 9]), st.sampled_from([DOUBTED, HINTED, VOUCHED]))


@given(st.lists(TAINTED, max_size=6), st.lists(TAINTED, max_size=6), st.sampled_from([PLAIN, TOLD]))
def test_no_lie_within_reach_of_a_text_stands_against_a_plain_word(
    before: list[tuple[int, int]], after: list[tuple[int, int]], word_rank: int
) -> None:
    record = follow([*before, (ALICE, word_rank), *after])
    assert (record & MINOR, record & RESTRICTED) == (ALICE, 0)


@given(st.lists(TAINTED, max_size=6), st.lists(st.just((9, DOUBTED)), max_size=6))
def test_lies_that_nobody_vouches_for_change_nothing_for_who_is_vouched_for(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    doubted = [(user, DOUBTED) for user, _rank in before]
    record = follow([*doubted, (ALICE, VOUCHED), *after])
    assert (record & MINOR, record & RESTRICTED) == (ALICE, 0)


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.sampled_from(RANKS)), max_size=8))
def test_nobody_gets_a_flow_whose_best_word_was_anothers(words: list[tuple[int, int]]) -> None:
    record = follow(words)
    if not record & MINOR or record & RESTRICTED:
        return
    best = max(word_rank for _user, word_rank in words)
    assert record & MINOR in {user for user, word_rank in words if word_rank == best}


# -- who vouches ----------------------------------------------------------------------------------

HERE, THERE = bytes([198, 51, 100, 7]), bytes([198, 51, 100, 8])


def saw(vouchers: Vouchers, minor: int, address: bytes, now_s: float) -> None:
    vouchers.saw([(address + b"\x10\x92", minor)], now_s)


def test_a_plain_word_vouches_for_its_user_and_address_alone_for_an_hour() -> None:
    vouchers = Vouchers()
    saw(vouchers, ALICE, HERE, 10.0)
    assert vouchers.vouch(ALICE, HERE, 10.0)
    assert vouchers.vouch(ALICE, HERE, 10.0 + VOUCH_S - 1)
    assert not vouchers.vouch(ALICE, HERE, 10.0 + VOUCH_S)
    assert not vouchers.vouch(BOB, HERE, 10.0)
    assert not vouchers.vouch(ALICE, THERE, 10.0)


def test_at_the_first_moment_of_the_clock_it_vouches_too() -> None:
    vouchers = Vouchers()
    saw(vouchers, ALICE, HERE, 0.0)
    assert vouchers.vouch(ALICE, HERE, 1.0)


def test_an_ipv6_customer_is_a_64() -> None:
    vouchers = Vouchers()
    here = bytes([0x20, 1, 0xD, 0xB8]) + bytes(11) + b"\1"
    saw(vouchers, ALICE, here, 1.0)
    assert vouchers.vouch(ALICE, here[:8] + b"somewhrE", 1.0)
    assert not vouchers.vouch(ALICE, here[:7] + b"\1" + here[8:], 1.0)
    assert address_key(HERE) == HERE


def test_nothing_vouches_for_the_next_owner_of_a_minor() -> None:
    vouchers = Vouchers()
    saw(vouchers, ALICE, HERE, 10.0)
    vouchers.passed_on([ALICE], 20.0)
    assert not vouchers.vouch(ALICE, HERE, 21.0)
    saw(vouchers, ALICE, HERE, 22.0)
    assert vouchers.vouch(ALICE, HERE, 23.0)


def test_the_renewed_word_counts_and_not_the_one_in_the_older_half() -> None:
    vouchers = Vouchers()
    saw(vouchers, ALICE, HERE, 10.0)
    fill(vouchers, 20.0)
    assert vouchers.vouch(ALICE, HERE, 21.0)
    saw(vouchers, ALICE, HERE, 3_000.0)
    assert vouchers.vouch(ALICE, HERE, 6_000.0)


def test_vouchers_are_bounded() -> None:
    vouchers = Vouchers()
    for second in range(3):
        fill(vouchers, second)
    assert len(vouchers._young) + len(vouchers._old) <= 2 * trust._VOUCHES


def fill(vouchers: Vouchers, now_s: float) -> None:
    """Make so many users known at as many addresses as one half holds."""
    for number in range(trust._VOUCHES):
        saw(vouchers, 256 + number // 2, (1 << 24 | number).to_bytes(4, "big"), now_s)


def test_a_user_with_a_whole_prefix_has_nobody_elses_forgotten() -> None:
    """65,536 plain words from as many /64 of one account emptied them."""
    vouchers = Vouchers()
    saw(vouchers, ALICE, HERE, 10.0)
    for number in range(65_536):
        net = bytes([0x20, 1, 0xD, 0xB8, 0, 7]) + number.to_bytes(2, "big")
        saw(vouchers, BOB, net + bytes(8), 11.0)
    assert vouchers.vouch(ALICE, HERE, 12.0)
    assert len(vouchers._young) < 100
    # Their own are those of late.
    lately = [bytes([0x20, 1, 0xD, 0xB8, 0, 7, 0xFF, n]) + bytes(8) for n in (0xC0, 0xFF)]
    assert all(vouchers.vouch(BOB, address, 12.0) for address in lately)
    assert not vouchers.vouch(BOB, lately[0][:7] + b"\xbf" + bytes(8), 12.0)
    saw(vouchers, BOB, lately[0], 20.0)
    assert len(vouchers._young) < 100


def test_who_comes_from_ever_other_addresses_is_vouched_for_at_the_last_of_them() -> None:
    """A day on the road, one address every five minutes, on a node where nothing is full."""
    vouchers = Vouchers()
    for number in range(288):
        address = (1 << 24 | number).to_bytes(4, "big")
        saw(vouchers, ALICE, address, number * 300.0)
        assert vouchers.vouch(ALICE, address, number * 300.0 + 299)
        saw(vouchers, BOB, HERE, number * 300.0)
        assert vouchers.vouch(BOB, HERE, number * 300.0 + VOUCH_S - 1)


# -- the rules as a table --------------------------------------------------------------------------

FREE = 0


MINE, OTHERS = owned(0, 5, PLAIN), owned(0, 6, PLAIN)
MINE_HINTED, OTHERS_HINTED = owned(0, 5, HINTED), owned(0, 6, HINTED)
OTHERS_VOUCHED, OTHERS_WEAK = owned(0, 6, VOUCHED), owned(0, 6, WEAK)
DOUBTFUL, DISPUTED = owned(0, 9, DOUBTED, flags.RESTRICTED), owned(0, 9, PLAIN, flags.RESTRICTED)
IN_ADVANCE = owned(0, 6, DOUBTED, PROVISIONAL)


@pytest.mark.parametrize(
    ("record", "claimed", "word", "verdict"),
    [
        (FREE, 5, PLAIN, Verdict.GIVE),
        (FREE, 0, PLAIN, Verdict.GIVE),
        (FREE, 5, HINTED, Verdict.GIVE),
        (FREE, 5, DOUBTED, Verdict.RESTRICT),
        (FREE, None, PLAIN, Verdict.RESTRICT),
        (FREE, None, DOUBTED, Verdict.RESTRICT),
        (MINE, 5, PLAIN, Verdict.KEEP),
        (MINE, 5, DOUBTED, Verdict.KEEP),
        (MINE, None, PLAIN, Verdict.KEEP),
        (MINE_HINTED, 5, PLAIN, Verdict.GIVE),
        (OTHERS, 5, PLAIN, Verdict.CONFLICT),
        (OTHERS, 0, PLAIN, Verdict.CONFLICT),
        (OTHERS, 5, WEAK, Verdict.KEEP),
        (OTHERS, 5, VOUCHED, Verdict.KEEP),
        (OTHERS, 5, TOLD, Verdict.GIVE),
        (OTHERS_WEAK, 5, WEAK, Verdict.GIVE),
        (OTHERS_WEAK, 5, PLAIN, Verdict.GIVE),
        (OTHERS_VOUCHED, 5, VOUCHED, Verdict.CONFLICT),
        (OTHERS_VOUCHED, 5, HINTED, Verdict.KEEP),
        (OTHERS_VOUCHED, 5, DOUBTED, Verdict.KEEP),
        (OTHERS_HINTED, 5, DOUBTED, Verdict.RESTRICT),
        (OTHERS_HINTED, 5, HINTED, Verdict.RESTRICT),
        (OTHERS_HINTED, 5, VOUCHED, Verdict.GIVE),
        (DOUBTFUL, 5, DOUBTED, Verdict.RESTRICT),
        (DOUBTFUL, 5, HINTED, Verdict.RESTRICT),
        (DOUBTFUL, 5, VOUCHED, Verdict.GIVE),
        (DISPUTED, 5, PLAIN, Verdict.RESTRICT),
        (DISPUTED, 5, TOLD, Verdict.GIVE),
        (IN_ADVANCE, 5, PLAIN, Verdict.GIVE),
        (IN_ADVANCE, 5, DOUBTED, Verdict.RESTRICT),
        (FOREIGN, 5, TOLD, Verdict.FOREIGN),
    ],
)
def test_verdicts(record: int, claimed: int | None, word: int, verdict: Verdict) -> None:
    assert judge(record, claimed, word) is verdict


def test_one_customer_is_one_address_or_one_64() -> None:
    assert address_key(b"\1\2\3\4") == b"\1\2\3\4"
    assert address_key(b"\x20\x01" + b"\0" * 13 + b"\1") == b"\x20\x01" + b"\0" * 6


def test_when_a_user_was_named_last_is_known_until_the_minor_is_anothers() -> None:
    vouchers = Vouchers()
    saw(vouchers, 42, bytes(4), 1_000.7)
    saw(vouchers, 42, bytes(16), 1_002.2)
    saw(vouchers, 0xFFFB, bytes(4), 1_003.0)
    assert [vouchers.named[minor] for minor in (42, 43, 0xFFFB)] == [1_002, 0, 1_003]
    vouchers.passed_on([42], 1_004.0)
    assert vouchers.named[42] == 0
