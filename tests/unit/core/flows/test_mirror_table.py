"""What the mirror makes of UDP, of marks that are there, and of a dump of the whole table."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from unit.core.flows.kernel_events import (
    ALICE,
    BOB,
    ESTABLISHED,
    MAJOR,
    TAG,
    TCP,
    UDP,
    US6,
    Kernel,
    client,
    ours,
    seen,
)
from vff_qos.core.claims.trust import ADOPTED, DOUBTED, PLAIN, WEAK
from vff_qos.core.flows import mirror as mirrors
from vff_qos.core.flows.ends import FlowSeen
from vff_qos.core.flows.meeting import Tags, Written, meet
from vff_qos.core.flows.mirror import GENERATION, Heard, Mirror
from vff_qos.core.flows.record import (
    FOREIGN,
    MAX_ADDRESSES,
    MINOR,
    NOT_PLAIN,
    PROVISIONAL,
    REMEMBERED,
    RESTRICTED,
    REUSED,
    VAGUE,
    birth_ms,
    owned,
    port,
    rank,
)
from vff_qos.core.settings import Hop
from vff_qos.errors import KernelRefused

# -- UDP ------------------------------------------------------------------------------------------


def test_a_udp_flow_of_an_address_where_one_user_lives_is_handed_on(kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    heard = kernel.new(client(2), ours(UDP))
    record = kernel.only(client(2))
    assert heard.handed_on == [(client(2), record)]
    assert (record & MINOR, record & PROVISIONAL) == (ALICE, PROVISIONAL)
    assert kernel.mirror.mark(record) == TAG | ALICE | 0x80000000


@pytest.mark.parametrize(
    ("end", "our_end"),
    [
        (client(2, "198.51.100.8"), ours(UDP)),
        (client(2), ours(UDP, 8443)),
        (client(2), ours(TCP)),
    ],
    ids=["other address", "other port", "tcp"],
)
def test_nothing_else_is_handed_on(end: bytes, our_end: bytes, kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    heard = kernel.new(end, our_end)
    assert heard == Heard()
    assert kernel.only(end) & MINOR == 0


def test_where_several_live_a_udp_flow_is_nobodys_and_told_of(kernel: Kernel) -> None:
    for number, minor in ((1, ALICE), (2, BOB)):
        kernel.new(client(number), ours(UDP))
        kernel.give(client(number), minor)
    heard = kernel.new(client(3), ours(UDP))
    assert heard.ambiguous == [(client(3), kernel.only(client(3)))]
    assert kernel.only(client(3)) & MINOR == 0
    # One of them leaves: the other one is alone.
    kernel.destroy(client(2), ours(UDP))
    assert kernel.new(client(4), ours(UDP)).handed_on == [(client(4), kernel.only(client(4)))]
    assert kernel.only(client(4)) & MINOR == ALICE


def test_what_is_in_doubt_says_nothing_about_who_lives_there(kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE, DOUBTED, RESTRICTED)
    assert kernel.new(client(2), ours(UDP)) == Heard()


def test_who_hops_lives_there_while_the_last_hop_does(kernel: Kernel) -> None:
    """The flow that a word was about ends some minutes after the first hop."""
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    for number in range(2, 9):
        assert kernel.new(client(number), ours(UDP)).handed_on, number
        kernel.destroy(client(number - 1), ours(UDP))
    # A word about one of several makes two users of them.
    kernel.new(client(20), ours(UDP))
    kernel.give(client(20), BOB)
    assert kernel.new(client(21), ours(UDP)).ambiguous
    kernel.destroy(client(8), ours(UDP))
    assert kernel.mirror.mark(kernel.only(client(20))) == TAG | BOB
    kernel.new(client(22), ours(UDP))
    assert kernel.only(client(22)) & MINOR == BOB
    for number in (20, 21, 22):
        kernel.destroy(client(number), ours(UDP))
    assert kernel.new(client(30), ours(UDP)) == Heard()


def test_a_flood_from_where_somebody_lives_leaves_no_trace(kernel: Kernel) -> None:
    """What is forgotten for its number lives nowhere any more."""
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    for address in ("198.51.100.7", "198.51.100.9", "198.51.100.10"):
        for number in range(2, 2 + GENERATION):
            kernel.new(client(number, address), ours(UDP))
    kernel.destroy(client(1), ours(UDP))
    assert kernel.new(client(1), ours(UDP)) == Heard()


def test_ports_that_one_hops_among_are_one_place() -> None:
    kernel = Kernel(hops=[Hop(20_000, 20_100, 443)])
    kernel.new(client(1), ours(UDP, 20_001))
    kernel.give(client(1), ALICE, our_end=ours(UDP, 20_001))
    assert kernel.new(client(2), ours(UDP, 20_099)).handed_on
    assert kernel.new(client(3), ours(UDP, 20_101)) == Heard()


def test_what_the_kernel_has_followed_is_its_users_until_a_word_comes() -> None:
    kernel = Kernel(is_restricted=lambda minor: minor == BOB)
    heard = kernel.new(client(1), ours(UDP), TAG | ALICE)
    assert heard.followed == [(client(1), kernel.only(client(1)))]
    assert (rank(kernel.only(client(1))), kernel.only(client(1)) & MINOR) == (ADOPTED, ALICE)
    # What was in doubt is so at the next port.
    kernel.new(client(2), ours(UDP), TAG | BOB)
    assert kernel.only(client(2)) & RESTRICTED
    # A static identity's, or a mark that was given in advance: nobody followed anything.
    kernel.mirror.fixed = frozenset((ALICE,))
    assert not kernel.new(client(3), ours(UDP), TAG | ALICE).followed
    assert not kernel.new(client(4), ours(UDP), 0x80000000 | TAG | BOB).followed


def test_a_ipv6_customer_moves_within_a_64(kernel: Kernel) -> None:
    kernel.new(client(1, "2001:db8::1"), ours(UDP, address=US6))
    kernel.give(client(1, "2001:db8::1"), ALICE)
    assert kernel.new(client(2, "2001:db8::2:2"), ours(UDP, address=US6)).handed_on
    assert not kernel.new(client(2, "2001:db8:0:1::1"), ours(UDP, address=US6)).handed_on


def test_nothing_is_handed_on_where_that_is_switched_off() -> None:
    kernel = Kernel(hand_on=False)
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    assert kernel.new(client(2), ours(UDP)) == Heard()


def test_who_moved_while_nobody_looked_is_handed_on_too(kernel: Kernel) -> None:
    heard = kernel.dump(
        seen(client(2), ours(UDP)), seen(client(1), ours(UDP), TAG | ALICE),
        seen(client(3), ours()), seen(client(4, "198.51.100.8"), ours(UDP)),
    )  # fmt: skip
    assert heard.handed_on == [(client(2), kernel.only(client(2)))]
    assert kernel.mirror.mark(kernel.only(client(2))) == 0x80000000 | TAG | ALICE
    heard = kernel.dump(
        seen(client(1), ours(UDP), TAG | ALICE), seen(client(5), ours(UDP), TAG | BOB),
        seen(client(6), ours(UDP)),
    )  # fmt: skip
    assert heard.ambiguous == [(client(6), kernel.only(client(6)))]
    # What was seen before is told of once.
    heard = kernel.dump(
        seen(client(1), ours(UDP), TAG | ALICE), seen(client(5), ours(UDP), TAG | BOB),
        seen(client(6), ours(UDP)),
    )  # fmt: skip
    assert (heard.handed_on, heard.ambiguous) == ([], [])


def test_neighbours_are_right_after_a_dump(kernel: Kernel) -> None:
    for number, minor in ((1, ALICE), (2, BOB)):
        kernel.new(client(number), ours(UDP))
        kernel.give(client(number), minor)
    kernel.dump(seen(client(2), ours(UDP), TAG | BOB))
    heard = kernel.new(client(3), ours(UDP))
    assert [record & MINOR for _client, record in heard.handed_on] == [BOB]
    kernel.destroy(client(2), ours(UDP))
    kernel.destroy(client(3), ours(UDP))
    assert kernel.mirror._neighbours == {}


# -- marks that are there -------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [0x1234, TAG, 0x52000007])
def test_a_mark_of_other_software_is_seen(mark: int, kernel: Kernel) -> None:
    heard = kernel.new(client(1), mark=mark)
    assert kernel.only(client(1)) & (FOREIGN | MINOR) == FOREIGN
    assert heard.foreign


def test_a_mark_given_in_advance_is_provisional(kernel: Kernel) -> None:
    kernel.new(client(1), mark=0x80000000 | TAG | ALICE)
    record = kernel.only(client(1))
    assert record & MINOR == ALICE and record & PROVISIONAL
    assert kernel.mirror.mark(record) == 0x80000000 | TAG | ALICE


def test_a_mark_seen_later_is_taken_over(kernel: Kernel) -> None:
    kernel.new(client(1))
    assert not kernel.mirror.correct(client(1), kernel.only(client(1)), 0x80000000 | TAG | ALICE)
    assert kernel.only(client(1)) & PROVISIONAL
    kernel.new(client(2))
    assert kernel.mirror.correct(client(2), kernel.only(client(2)), 0x1234)
    assert kernel.only(client(2)) & (FOREIGN | MINOR) == FOREIGN


# -- the whole table ------------------------------------------------------------------------------


def test_flows_that_were_there_before_are_vague_and_keep_their_owners(kernel: Kernel) -> None:
    kernel.now_s = 5.0
    kernel.dump(seen(client(1), mark=TAG | ALICE), seen(client(2)))
    record = kernel.only(client(1))
    assert (record & MINOR, rank(record)) == (ALICE, WEAK)
    assert record & VAGUE and record & REUSED
    assert kernel.only(client(2)) & (NOT_PLAIN | REUSED) == VAGUE | REUSED


def test_a_restricted_flow_is_free_again_by_any_word_after_a_restart() -> None:
    mirror = Mirror(MAJOR)
    mirror.resync([seen(client(1), mark=TAG | 9)], 1.0, lambda minor: minor == 9)
    (record,) = mirror.find(client(1))
    assert record & RESTRICTED
    assert rank(record) == DOUBTED


def test_the_kernels_own_time_of_birth_is_believed() -> None:
    mirror = Mirror(MAJOR, 100.0)
    born_ns = 1_000_101_500_000_000  # 101.5 s of our clock, which is 1,000,000 s behind
    mirror.resync([seen(client(1), started_ns=born_ns)], 110.0, lambda _minor: False,
                  epoch_offset_s=1_000_000.0)  # fmt: skip
    (record,) = mirror.find(client(1))
    assert birth_ms(record) == 1_500
    assert not record & VAGUE


def test_a_time_of_birth_of_before_the_clock_was_set_says_nothing() -> None:
    """By a clock that was 60 s behind, so that the flow seems to be older than it is."""
    mirror, epoch_s = Mirror(MAJOR), 1_000_060.0
    table = [
        seen(client(1), started_ns=1_000_100_000_000_000),  # at 100 s
        seen(client(2), started_ns=1_000_175_000_000_000),  # at 115 s
    ]
    mirror.resync(table, 120.0, lambda _minor: False, True, epoch_s, clear_since_s=110.0)
    assert [bool(mirror.find(client(n))[0] & VAGUE) for n in (1, 2)] == [True, False]
    assert birth_ms(mirror.find(client(2))[0]) == 115_000


@pytest.mark.parametrize("lossy", [False, True])
def test_a_flow_is_the_same_one_after_the_clock_was_set(kernel: Kernel, lossy: bool) -> None:
    kernel.now_s = 10.0
    kernel.new(client(1))
    kernel.give(client(1), ALICE, PLAIN)
    before = kernel.only(client(1))
    again = seen(client(1), mark=TAG | ALICE, started_ns=1_000_010_000_000_000)
    kernel.mirror.resync([again], 60.0, lambda _minor: False, lossy, 1_000_002.0, 50.0)
    after = kernel.only(client(1))
    assert (after & MINOR, rank(after)) == (ALICE, PLAIN)
    assert (after == before) is not lossy


def test_flows_that_have_gone_meanwhile_are_gone(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.new(client(2))
    kernel.dump(seen(client(2)))
    assert kernel.mirror.find(client(1)) == ()
    assert kernel.mirror.size == 1


def test_after_lost_events_a_flow_without_its_mark_is_another_one(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    heard = kernel.dump(seen(client(1), mark=0), lossy=True)
    assert kernel.only(client(1)) & MINOR == 0
    assert heard.restore == []


def test_after_lost_events_a_flow_with_its_mark_stays_its_owners(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.new(client(2))
    kernel.dump(seen(client(1), mark=TAG | ALICE), seen(client(2)), lossy=True)
    assert kernel.only(client(1)) & (MINOR | VAGUE) == ALICE | VAGUE
    # It may be another one than before: no word on it is certain any more.
    assert kernel.only(client(2)) & VAGUE


def test_where_nothing_was_lost_a_mark_that_others_took_is_restored(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    record = kernel.only(client(1))
    heard = kernel.dump(seen(client(1), mark=0), lossy=False)
    assert heard.restore == [(client(1), record)]
    assert kernel.only(client(1)) == record


def test_a_mark_that_other_software_has_written_over_ours_is_theirs(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    heard = kernel.dump(seen(client(1), mark=0x1234), lossy=False)
    assert kernel.only(client(1)) & (FOREIGN | MINOR) == FOREIGN
    assert heard.foreign
    assert heard.restore == []


def test_repetitions_are_forgotten_with_their_flow(kernel: Kernel) -> None:
    for number in (1, 2, 3):
        kernel.new(client(number))
        kernel.give(client(number), ALICE, flags=REMEMBERED)
    assert kernel.destroy(client(1)).forgotten == [client(1)]
    heard = kernel.dump(seen(client(2), mark=TAG | ALICE), lossy=False)
    assert heard.forgotten == [client(3)]


def test_a_repetition_may_mean_the_second_flow_of_its_client_end(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE, flags=REMEMBERED)
    two = seen(client(1), mark=TAG | ALICE), seen(client(1), ours(port_number=8443))
    assert kernel.dump(*two).forgotten == [client(1)]
    kernel.dump(two[0])
    assert kernel.new(client(1), ours(port_number=8443)).forgotten == [client(1)]


def test_a_flow_that_comes_twice_in_a_dump_is_one(kernel: Kernel) -> None:
    kernel.dump(seen(client(1)), seen(client(1)), seen(client(1), ours(port_number=8443)))
    assert len(kernel.mirror.find(client(1))) == 2


def test_events_that_came_during_a_dump_tell_the_birth_of_what_it_has_shown(
    kernel: Kernel,
) -> None:
    kernel.dump(seen(client(1)))
    kernel.now_s = 0.25
    kernel.new(client(1), after_dump=True)
    record = kernel.only(client(1))
    assert not record & VAGUE
    assert birth_ms(record) == 250
    kernel.destroy(client(1))
    assert kernel.mirror.find(client(1)) == ()


def test_a_birth_that_the_dump_knows_is_not_moved_by_its_event(kernel: Kernel) -> None:
    """The event waits while the dump is read; a word that comes meanwhile is not older."""
    kernel.now_s = 3.0
    kernel.dump(seen(client(1), started_ns=2_000_000_000))
    kernel.now_s = 5.0
    kernel.new(client(1), after_dump=True)
    assert birth_ms(kernel.only(client(1))) == 2_000


def test_an_owner_in_the_dump_is_not_lost_by_the_event_of_the_flows_birth(kernel: Kernel) -> None:
    kernel.dump(seen(client(1), mark=TAG | ALICE))
    kernel.new(client(1), after_dump=True)
    assert kernel.only(client(1)) & MINOR == ALICE


# -- look-ups -------------------------------------------------------------------------------------


def test_a_flow_that_was_looked_up_is_vague(kernel: Kernel) -> None:
    record = kernel.mirror.add(seen(client(1), mark=TAG | ALICE), 3.0)
    assert record == kernel.only(client(1))
    assert record & VAGUE and record & MINOR == ALICE
    assert kernel.mirror.add(seen(client(1)), 4.0) == record


def test_a_flow_that_the_kernel_does_not_have_is_removed(kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.new(client(1), ours())
    kernel.give(client(1), ALICE, our_end=ours(UDP))
    kernel.mirror.remove(client(1), kernel.only(client(1), ours(UDP)))
    assert port(kernel.only(client(1), ours())) == 443
    assert kernel.new(client(2), ours(UDP)) == Heard()  # nobody lives there any more


def test_a_dump_that_fails_loses_nothing(kernel: Kernel) -> None:
    """What was read stays as it was read, what was not as it was; the next says what is due."""
    for number, flags in ((1, 0), (3, REMEMBERED), (4, REMEMBERED)):
        kernel.new(client(number), ours(UDP if number == 4 else 6))
        (record,) = kernel.mirror.find(client(number))
        kernel.mirror.put(client(number), owned(record, ALICE, WEAK, flags))
    before = [kernel.mirror.find(client(number)) for number in (1, 4)]

    def broken() -> Iterator[FlowSeen]:
        yield seen(client(2))
        yield seen(client(3), mark=1)  # other software's: the word is not known any more
        raise KernelRefused(errno.EINTR, "reading the conntrack table")

    with pytest.raises(KernelRefused):
        kernel.mirror.resync(broken(), 5.0, lambda _minor: False)
    assert [kernel.mirror.find(client(number)) for number in (1, 4)] == before
    assert len(kernel.mirror.find(client(2))) == 1
    assert (kernel.mirror.size, kernel.mirror.claimed) == (4, 2)
    # A new flow from where alice lives is hers: who lives where is counted right.
    kernel.new(client(5), ours(UDP))
    assert kernel.only(client(5), ours(UDP)) & MINOR == ALICE
    heard = kernel.mirror.resync([seen(client(2))], 6.0, lambda _minor: False)
    assert sorted(heard.forgotten) == [client(3), client(4)]
    assert (kernel.mirror.size, kernel.mirror.claimed) == (1, 0)


def test_what_a_failed_dump_would_have_handed_on_the_next_one_does(kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    there = seen(client(1), ours(UDP), TAG | ALICE), seen(client(2), ours(UDP))

    def broken() -> Iterator[FlowSeen]:
        yield from there
        raise KernelRefused(errno.EINTR, "reading the conntrack table")

    with pytest.raises(KernelRefused):
        kernel.mirror.resync(broken(), 5.0, lambda _minor: False)
    heard = kernel.dump(*there)
    assert heard.handed_on == [(client(2), kernel.only(client(2)))]
    assert kernel.only(client(2)) & (MINOR | PROVISIONAL) == ALICE | PROVISIONAL


def test_no_flow_is_born_in_the_future_when_the_clock_was_set_back(kernel: Kernel) -> None:
    """The kernel says when a flow began by the clock of that time; words on it are not older."""
    kernel.now_s = 100.0
    began_ns = int((3_600.0 + 95.0) * 1e9)  # before the clock was set back by an hour
    kernel.dump(seen(client(1), started_ns=began_ns))
    said = Written(101_000, 101_000)
    record = kernel.only(client(1))
    met = meet([record], 0, b"in", None, Tags(), lambda: said, kernel.mirror.earliest_ms)
    assert met is not None
    assert not met.certain


def test_a_comparison_in_a_flood_of_syns_keeps_connections_that_wait_for_their_word(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "GENERATION", 100)
    waiting = [client(n, "198.51.100.8") for n in range(1, 51)]
    kernel.dump(
        *(seen(end, state=ESTABLISHED) for end in waiting),
        *(seen(client(1 + n)) for n in range(1_000)),
        seen(client(1, "198.51.100.9"), mark=TAG | ALICE),
    )
    assert all(map(kernel.mirror.find, waiting))
    assert kernel.mirror.size <= 2 * 100 + 1
    assert kernel.mirror.evicted == 1_051 - kernel.mirror.size


def test_flows_whose_mark_others_have_overwritten_are_counted_while_they_live(
    kernel: Kernel,
) -> None:
    for number in (1, 2, 3, 4):
        kernel.new(client(number))
    for number in (1, 2, 3):
        kernel.give(client(number), ALICE)
    assert kernel.mirror.robbed == 0
    # The third is as it was; the fourth was nobody's and is not ours to miss.
    others = [seen(client(number), mark=23) for number in (1, 2, 4)]
    kernel.dump(*others, seen(client(3), mark=TAG | ALICE))
    assert kernel.mirror.robbed == 2
    kernel.dump(*others)
    assert kernel.mirror.robbed == 2
    kernel.destroy(client(1))
    assert kernel.mirror.robbed == 1
    kernel.give(client(2), BOB)
    assert kernel.mirror.robbed == 0


def test_loopback_addresses_leave_room_for_those_that_clients_reach(kernel: Kernel) -> None:
    for number in range(MAX_ADDRESSES):
        end = bytes((TCP, 127, 1)) + number.to_bytes(2, "big") + (443).to_bytes(2, "big")
        kernel.new(client(number), end)
    kernel.new(client(5_000), ours(TCP))
    assert kernel.mirror.find(client(5_000))
