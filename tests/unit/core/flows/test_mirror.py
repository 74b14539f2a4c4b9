"""The mirror knows the live flows as the kernel's events tell of them, and whose they were."""

from __future__ import annotations

import sys

import pytest

from unit.core.flows.kernel_events import (
    ALICE,
    BOB,
    ESTABLISHED,
    SYN_SENT,
    TAG,
    TCP,
    UDP,
    US,
    US6,
    US_TOO,
    Kernel,
    client,
    ours,
    seen,
)
from vff_qos.core.claims.trust import DOUBTED, FIXED, PLAIN, WEAK
from vff_qos.core.flow import Flow
from vff_qos.core.flows import mirror as mirrors
from vff_qos.core.flows.ends import ServiceEnds
from vff_qos.core.flows.mirror import Heard
from vff_qos.core.flows.record import (
    FOREIGN,
    MINOR,
    NOT_PLAIN,
    PROVISIONAL,
    RESTRICTED,
    REUSED,
    VAGUE,
    birth_ms,
    owned,
    rank,
)

# -- births and ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "our_end"),
    [
        (client(5555), ours()),
        (client(5555), ours(UDP)),
        (client(5555, "2001:db8::7"), ours(address=US6)),
    ],
    ids=["tcp4", "udp4", "tcp6"],
)
def test_a_new_flow_is_nobodys_and_certain(end: bytes, our_end: bytes, kernel: Kernel) -> None:
    kernel.now_s = 12.5
    kernel.new(end, our_end)
    record = kernel.only(end)
    assert not record & (NOT_PLAIN | REUSED)
    assert birth_ms(record) == 12_500
    assert kernel.mirror.mark(record) == 0
    assert kernel.mirror.ours(record) == our_end
    assert kernel.mirror.flow(end, record) == Flow(our_end[0], end[:-2], 5555, our_end[1:-2], 443)


def test_an_ended_flow_is_not_found_and_leaves_its_port(kernel: Kernel) -> None:
    kernel.new(client(1), ours(port_number=8443))
    assert kernel.mirror.last_port(client(1)) == 0
    kernel.destroy(client(1), ours(port_number=8443))
    assert kernel.mirror.find(client(1)) == ()
    assert kernel.mirror.last_port(client(1)) == 8443
    assert kernel.mirror.size == 0


def test_the_end_of_a_flow_that_nobody_knew_is_nothing(kernel: Kernel) -> None:
    assert kernel.destroy(client(1)) == Heard()
    kernel.new(client(1), ours())
    kernel.destroy(client(1), ours(port_number=8443))
    assert kernel.only(client(1))


def test_a_protocol_without_ports_is_not_kept(kernel: Kernel) -> None:
    kernel.new(client(1), ours(proto=132))
    assert kernel.mirror.find(client(1)) == ()


# -- reuse ----------------------------------------------------------------------------------------


def test_a_reused_tuple_is_another_flow_of_nobody(kernel: Kernel) -> None:
    """TIME_WAIT reuse: DESTROY and NEW in one breath, the same CTA_ID."""
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.now_s = 3.0
    heard = kernel.destroy(client(1))
    heard.add(kernel.new(client(1)))
    record = kernel.only(client(1))
    assert (record & MINOR, birth_ms(record)) == (0, 3_000)
    assert record & REUSED
    assert heard.restore == []


def test_reuse_is_remembered_for_half_a_minute_and_not_for_ever(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.destroy(client(1))
    kernel.now_s = 29.0
    kernel.new(client(1))
    assert kernel.only(client(1)) & REUSED
    kernel.destroy(client(1))
    kernel.now_s = 100.0
    kernel.new(client(2))
    kernel.now_s = 140.0
    kernel.new(client(1))
    assert not kernel.only(client(1)) & REUSED


def test_another_flow_of_an_end_whose_flow_has_ended_is_not_certain_either(kernel: Kernel) -> None:
    """The word of the ended one may still come, and names the client's end alone."""
    kernel.new(client(1), ours())
    kernel.destroy(client(1), ours())
    kernel.new(client(1), ours(port_number=8443))
    assert kernel.only(client(1)) & REUSED


@pytest.mark.parametrize("state", [SYN_SENT, ESTABLISHED])
def test_sixteen_reopened_connections_are_no_flush(state: int, kernel: Kernel) -> None:
    for number in range(16):
        kernel.new(client(number))
        kernel.give(client(number), ALICE)
    heard = Heard()
    for number in range(16):
        heard.add(kernel.destroy(client(number)))
        heard.add(kernel.new(client(number), state=state))
    assert heard.restore == []
    assert kernel.mirror.claimed == 0


def test_a_new_flow_where_the_end_of_the_old_one_was_not_told_is_another_one(
    kernel: Kernel,
) -> None:
    """nf_conntrack_events=2 sends no DESTROY for flows older than our socket."""
    kernel.dump(seen(client(1), mark=TAG | ALICE))
    heard = kernel.new(client(1))
    record = kernel.only(client(1))
    assert record & MINOR == 0 and record & REUSED
    assert not record & VAGUE
    assert heard.restore == []


def test_graves_are_bounded(kernel: Kernel) -> None:
    for number in range(40_000):
        end = client(1 + number % 60_000, f"10.0.{number >> 14}.1")
        kernel.new(end)
        kernel.destroy(end)
    graves = kernel.mirror._graves
    assert len(graves[0]) + len(graves[1]) <= 2 * mirrors._GRAVES
    assert kernel.mirror.size == 0


@pytest.mark.parametrize(("read_s", "birth"), [(3.0, 3_000), (3.0001, 3_001), (3.0009, 3_001)])
def test_no_birth_comes_before_what_was_said_before_it(
    kernel: Kernel, read_s: float, birth: int
) -> None:
    kernel.mirror.apply([(True, seen(client(1)))], read_s)
    assert birth_ms(kernel.only(client(1))) == birth
    epoch_s = 1_000_000.0  # of the kernel's stamp, in ns
    born = seen(client(2))._replace(started_ns=round((epoch_s + read_s) * 1e9))
    kernel.mirror.resync([born], read_s + 1, lambda _minor: False, epoch_offset_s=epoch_s)
    assert birth_ms(kernel.only(client(2))) == birth


def test_a_birth_that_was_read_late_may_have_been_earlier(kernel: Kernel) -> None:
    kernel.new(client(1))
    assert kernel.mirror.earliest_ms(kernel.only(client(1))) == -50
    kernel.mirror.apply([(True, seen(client(2)))], 9.0, since_s=8.999)
    assert kernel.mirror.earliest_ms(kernel.only(client(2))) == 8_950
    kernel.mirror.apply([(True, seen(client(3)))], 12.0, since_s=9.0)
    assert kernel.mirror.earliest_ms(kernel.only(client(3))) == 9_000
    for number in range(1_000):
        kernel.mirror.apply([], 20.0 + number, since_s=19.0 + number)
    assert len(kernel.mirror._late) <= mirrors._LATE


# -- somebody flushes the table -------------------------------------------------------------------


def test_a_connection_that_goes_on_after_a_flush_is_its_owners_again(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), by_request=True)
    assert kernel.mirror.find(client(1)) == ()
    assert kernel.mirror.wanted_minors() == {ALICE}
    heard = kernel.new(client(1), state=ESTABLISHED)
    record = kernel.only(client(1))
    # Weakly: a plain word would be believed more.
    assert (record & MINOR, rank(record)) == (ALICE, WEAK)
    assert record & REUSED
    assert heard.restore == [(client(1), record)]
    assert kernel.mirror.mark(record) == TAG | ALICE


def test_a_udp_flow_goes_on_after_a_flush(kernel: Kernel) -> None:
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), ours(UDP), by_request=True)
    heard = kernel.new(client(1), ours(UDP))
    record = kernel.only(client(1))
    assert (record & MINOR, rank(record)) == (ALICE, WEAK)
    assert heard.restore == [(client(1), record)]
    assert heard.handed_on == []


def test_a_new_connection_after_a_flush_is_nobodys(kernel: Kernel) -> None:
    """It begins with a SYN, so that it is not the one that was deleted."""
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), by_request=True)
    heard = kernel.new(client(1), state=SYN_SENT)
    record = kernel.only(client(1))
    assert record & MINOR == 0
    assert heard.restore == []
    # The word of the one before may still be on its way.
    assert record & REUSED


@pytest.mark.parametrize("flags", [RESTRICTED, PROVISIONAL])
def test_what_was_in_doubt_before_a_flush_is_in_doubt_after_it(flags: int, kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE, PLAIN, flags)
    kernel.destroy(client(1), by_request=True)
    kernel.new(client(1), state=ESTABLISHED)
    assert kernel.only(client(1)) & (RESTRICTED | PROVISIONAL) == flags
    # Any word but a doubted one ends it.
    assert rank(kernel.only(client(1))) == DOUBTED


def test_a_flow_that_came_back_with_a_mark_keeps_that(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), by_request=True)
    heard = kernel.new(client(1), mark=0x1234, state=ESTABLISHED)
    assert kernel.only(client(1)) & (FOREIGN | MINOR) == FOREIGN
    assert heard.foreign
    assert heard.restore == []


def test_what_does_not_come_back_after_a_flush_is_forgotten(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), by_request=True)
    for kernel.now_s in (130.0, 260.0):
        kernel.new(client(int(kernel.now_s)))
    assert kernel.mirror.wanted_minors() == set()
    assert kernel.new(client(1), state=ESTABLISHED).restore == []


def test_a_udp_flow_whose_end_nobody_told_is_its_owners_until_a_word_comes(
    kernel: Kernel,
) -> None:
    """Flushed or timed out: older than our socket, it sends no DESTROY in either case."""
    kernel.dump(seen(client(1), ours(UDP), TAG | ALICE))
    heard = kernel.new(client(1), ours(UDP))
    record = kernel.only(client(1))
    assert heard.restore == [(client(1), record)]
    assert (record & MINOR, rank(record), record & PROVISIONAL) == (ALICE, DOUBTED, PROVISIONAL)


def test_an_owner_of_two_flushes_ago_gets_nothing(kernel: Kernel) -> None:
    for kernel.now_s in (1.0, 125.0):
        kernel.mirror.add(seen(client(1), mark=TAG | ALICE), kernel.now_s)
        kernel.destroy(client(1), by_request=True)
    kernel.new(client(1), state=SYN_SENT)
    kernel.destroy(client(1), by_request=True)
    assert kernel.new(client(1), state=ESTABLISHED).restore == []
    assert kernel.only(client(1)) & MINOR == 0


def test_a_beginning_that_was_lost_is_no_way_back_to_the_owner_before(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    kernel.destroy(client(1), by_request=True)
    kernel.dump(seen(client(1)), lossy=True)
    kernel.destroy(client(1), by_request=True)
    assert kernel.new(client(1), state=ESTABLISHED).restore == []


def test_a_flush_in_the_older_socketless_mode_is_known_by_the_picked_up_flow(
    kernel: Kernel,
) -> None:
    """No DESTROY came for what is older than the socket, but its next packet makes it NEW."""
    kernel.dump(seen(client(1), mark=TAG | ALICE))
    heard = kernel.new(client(1), state=ESTABLISHED)
    record = kernel.only(client(1))
    assert record & MINOR == ALICE
    assert heard.restore == [(client(1), record)]


# -- several flows of one end ---------------------------------------------------------------------


def test_flows_of_one_client_end_are_kept_apart(kernel: Kernel) -> None:
    ends = [ours(), ours(UDP), ours(port_number=8443), ours(address=US_TOO)]
    for end in ends:
        kernel.new(client(1), end)
    assert {kernel.mirror.ours(record) for record in kernel.mirror.find(client(1))} == set(ends)
    kernel.give(client(1), ALICE, our_end=ends[0])
    kernel.give(client(1), BOB, our_end=ends[1])
    kernel.destroy(client(1), ends[2])
    held = {kernel.mirror.ours(r): r & MINOR for r in kernel.mirror.find(client(1))}
    assert held == {ends[0]: ALICE, ends[1]: BOB, ends[3]: 0}
    kernel.destroy(client(1), ends[0])
    kernel.destroy(client(1), ends[3])
    assert kernel.only(client(1)) & MINOR == BOB
    kernel.destroy(client(1), ends[1])
    assert kernel.mirror.size == 0


def test_a_second_flow_of_a_claimed_end_is_nobodys(kernel: Kernel) -> None:
    kernel.new(client(1), ours())
    kernel.give(client(1), ALICE)
    kernel.new(client(1), ours(port_number=8443))
    assert kernel.only(client(1), ours(port_number=8443)) & MINOR == 0
    assert kernel.only(client(1), ours()) & MINOR == ALICE


def test_what_is_put_for_a_flow_that_has_gone_is_nothing(kernel: Kernel) -> None:
    kernel.new(client(1))
    record = kernel.only(client(1))
    kernel.destroy(client(1))
    kernel.mirror.put(client(1), owned(record, ALICE, PLAIN))
    assert kernel.mirror.find(client(1)) == ()
    kernel.new(client(1), ours(port_number=8443))
    kernel.mirror.put(client(1), owned(record, ALICE, PLAIN))
    assert kernel.only(client(1)) & MINOR == 0


# -- floods ---------------------------------------------------------------------------------------


def test_a_flood_of_syns_is_bounded_and_costs_no_flow_that_is_somebodys(kernel: Kernel) -> None:
    kernel.new(client(1))
    kernel.give(client(1), ALICE)
    for block in range(20):
        kernel.mirror.apply(
            [
                (True, seen(client(1 + n % 60_000, f"10.{block}.{n // 60_000}.9")))
                for n in range(10_000)
            ],
            1.0,
        )
    assert kernel.mirror.size <= 2 * mirrors.GENERATION + 1
    assert kernel.mirror.evicted >= 200_000 - 2 * mirrors.GENERATION
    assert kernel.only(client(1)) & MINOR == ALICE


def test_the_room_of_flows_that_became_somebodys_is_given_back(kernel: Kernel) -> None:
    ends = [client(number) for number in range(1, 20_001)]
    for end in ends:
        kernel.new(end)
    for end in ends[:-1]:
        kernel.give(end, ALICE)
    before = sys.getsizeof(kernel.mirror._young)
    kernel.mirror.shrink()
    assert sys.getsizeof(kernel.mirror._young) < 1_000 < before
    assert kernel.mirror.find(ends[-1]) and kernel.mirror.size == 20_000


def test_a_flood_from_a_users_address_is_bounded_too(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each datagram from another port of theirs, spoofed or not, is handed on."""
    monkeypatch.setattr(mirrors, "GENERATION", 100)
    kernel.new(client(1), ours(UDP))
    kernel.give(client(1), ALICE)
    for number in range(2, 1_002):
        assert kernel.new(client(number), ours(UDP)).handed_on
    assert kernel.mirror.size <= 2 * 100 + 1
    assert kernel.mirror.claimed == 1
    # Whose end was forgotten is looked up, and still is hers until a word comes.
    kernel.mirror.add(seen(client(2), ours(UDP), mark=0x80000000 | TAG | ALICE), 1.0)
    assert kernel.only(client(2)) & (MINOR | PROVISIONAL) == ALICE | PROVISIONAL


def test_who_has_waited_less_than_a_generation_is_still_found(kernel: Kernel) -> None:
    kernel.new(client(1))
    for number in range(mirrors.GENERATION - 1):
        kernel.new(client(1 + number % 60_000, "10.0.0.9"))
    kernel.give(client(1), ALICE)
    assert kernel.mirror.mark(kernel.only(client(1))) == TAG | ALICE


def test_a_generation_that_another_kind_of_flow_has_ended_is_not_ended_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "GENERATION", 100)
    flood = [(True, seen(client(1 + n))) for n in range(100)]
    udp, last = (True, seen(client(1_001), ours(UDP))), (True, seen(client(1_002)))
    kernel.mirror.apply([*flood, udp, last], 0.0)
    assert kernel.mirror.evicted == 0
    assert all(kernel.mirror.find(client(1 + n)) for n in range(100))


# -- which end is ours ----------------------------------------------------------------------------


def test_behind_dnat_our_end_is_the_public_one() -> None:
    """The original tuple bears what the client has asked for (Docker's published ports)."""
    ends = ServiceEnds(((443, 443),), [US])
    at = ends.orient(TCP, client(0)[:-2], b"\x15\xb3", US, b"\x01\xbb")
    assert at == (client(5555), ours())


def test_an_ipv4_mapped_address_is_ipv4() -> None:
    ends = ServiceEnds(((443, 443),), [bytes(10) + b"\xff\xff" + US])
    mapped = bytes(10) + b"\xff\xff"
    at = ends.orient(TCP, mapped + client(0)[:-2], b"\x15\xb3", mapped + US, b"\x01\xbb")
    assert at == (client(5555), ours())


def test_a_flow_that_our_side_picked_up_is_turned_around() -> None:
    ends = ServiceEnds(((443, 443),), [US])
    at = ends.orient(UDP, US, b"\x01\xbb", client(0)[:-2], b"\x15\xb3")
    assert at == (client(5555), ours(UDP))


# -- services and networks ------------------------------------------------------------------------


def test_a_flow_of_a_network_is_fixed_and_any_other_mark_is_weak(kernel: Kernel) -> None:
    kernel.mirror.fixed = frozenset({ALICE})
    kernel.new(client(1), mark=TAG | ALICE)
    kernel.new(client(2), mark=TAG | BOB)
    assert [rank(kernel.only(client(n))) for n in (1, 2)] == [FIXED, WEAK]


@pytest.mark.parametrize("lossy", [True, False])
def test_once_it_is_no_network_any_more_a_word_takes_it(kernel: Kernel, lossy: bool) -> None:
    kernel.mirror.fixed = frozenset({ALICE})
    kernel.new(client(1), mark=TAG | ALICE)
    table = seen(client(1), mark=TAG | ALICE, state=ESTABLISHED)
    kernel.dump(table, lossy=lossy)
    assert rank(kernel.only(client(1))) == FIXED
    kernel.mirror.fixed = frozenset()
    kernel.dump(table, lossy=lossy)
    assert rank(kernel.only(client(1))) == WEAK
    kernel.mirror.fixed = frozenset({ALICE})
    kernel.dump(table, lossy=lossy)
    assert rank(kernel.only(client(1))) == FIXED


def test_only_live_flows_of_nobody_to_these_ports_since_then_count(kernel: Kernel) -> None:
    ports = bytearray(1 << 16)
    ports[443] = 1
    mirror = kernel.mirror

    def count(since_s: float) -> int:
        return mirror.nobodys_since(since_s, bytes(ports))

    kernel.now_s = 10.0
    kernel.new(client(1), ours())
    kernel.now_s = 20.0
    kernel.new(client(2), ours())
    kernel.new(client(3), ours(UDP))
    kernel.new(client(4), ours(TCP, 8443))
    kernel.new(client(5), ours(), mark=0x42)  # other software's
    kernel.new(client(6), ours())
    mirror.put(client(6), owned(kernel.only(client(6)), 7, PLAIN))
    assert [count(since_s) for since_s in (0.0, 15.0, 25.0)] == [3, 2, 0]
    kernel.destroy(client(2))
    assert count(0.0) == 2
    ports[8443] = 1
    assert count(0.0) == 3
