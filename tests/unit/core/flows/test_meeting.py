"""A claim meets the one flow that it can mean, and knows how certain that is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.trust import PLAIN, TOLD, WEAK
from vff_qos.core.flows.meeting import Local, Meeting, Tags, Written, meet
from vff_qos.core.flows.record import (
    ADDRESS_SHIFT,
    BIRTH_SHIFT,
    PORT_SHIFT,
    PROVISIONAL,
    RESTRICTED,
    REUSED,
    UDP,
    VAGUE,
    owned,
)

ALICE, BOB = 7, 8
SLACK_MS = 50


def earliest_ms(record: int) -> int:
    return (record >> BIRTH_SHIFT) - SLACK_MS


def flow(
    port: int = 443, address: int = 0, born_ms: int = 1_000, flags: int = 0, minor: int = 0
) -> int:
    """A record."""
    record = flags | port << PORT_SHIFT | address << ADDRESS_SHIFT | born_ms << BIRTH_SHIFT
    return owned(record, minor, PLAIN, flags & (PROVISIONAL | RESTRICTED)) if minor else record


def never() -> Written:
    raise AssertionError("the time of a claim was asked for where it does not matter")


def of(
    records: Sequence[int],
    claimed: int = ALICE,
    tag: bytes = b"in",
    local: Local | None = None,
    tags: Tags | None = None,
    written: tuple[float, float] | None = None,
) -> Meeting | None:
    """Which flow a claim means."""
    when = never if written is None else lambda: Written(*written)
    return meet(records, claimed, tag, local, tags or Tags(), when, earliest_ms)


def knowing(**ends: int | tuple[int, ...]) -> Tags:
    """Tags that have been seen on these ports."""
    tags = Tags()
    for tag, ports in ends.items():
        for port in (ports,) if isinstance(ports, int) else ports:
            tags.learn(tag.encode(), flow(port))
    return tags


def test_the_only_flow_of_an_end_is_meant_for_certain() -> None:
    assert of([flow()]) == Meeting(flow(), True)


def test_which_of_several_is_not_certain_where_nothing_is_known() -> None:
    records = [flow(443), flow(8443)]
    meeting = of(records)
    assert meeting is not None
    assert meeting.record in records
    assert not meeting.certain


def test_the_tag_tells_flows_of_one_client_end_apart() -> None:
    tags = knowing(a=443, b=8443)
    records = [flow(443), flow(8443)]
    assert of(records, tag=b"a", tags=tags) == Meeting(records[0], True)
    assert of(records, tag=b"b", tags=tags) == Meeting(records[1], True)


def test_the_tag_tells_tcp_from_udp() -> None:
    tags = Tags()
    tags.learn(b"tcp", flow(443))
    tags.learn(b"quic", flow(443, flags=UDP))
    records = [flow(443, flags=UDP), flow(443)]
    assert of(records, tag=b"tcp", tags=tags) == Meeting(records[1], True)
    assert of(records, tag=b"quic", tags=tags) == Meeting(records[0], True)


def test_what_another_tag_has_is_left_to_it() -> None:
    records = [flow(443), flow(8443)]
    assert of(records, tag=b"new", tags=knowing(a=443)) == Meeting(records[1], True)


def test_a_flow_to_where_the_tag_was_not_seen_yet_is_met_when_the_others_have_their_word() -> None:
    """Shadowsocks takes TCP and UDP on one port, under one tag; so does a range."""
    tags = knowing(a=443)
    mine, new = flow(443, minor=ALICE), flow(443, flags=UDP)
    assert of([mine, new], tag=b"a", tags=tags) == Meeting(new, False)
    tags.learn(b"b", flow(443, flags=UDP))
    assert of([mine, new], tag=b"a", tags=tags) == Meeting(mine, True)


def test_that_of_another_user_is_left_alone() -> None:
    records = [flow(443, minor=ALICE), flow(8443, minor=BOB)]
    assert of(records, tag=b"a", tags=knowing(a=443)) == Meeting(records[0], True)


def test_our_end_in_the_claim_decides() -> None:
    records = [flow(443, 0), flow(443, 1), flow(8443, 0)]
    assert of(records, local=Local(443, 1)) == Meeting(records[1], True)
    assert of(records, local=Local(8443, -1)) == Meeting(records[2], True)


def test_our_end_in_the_claim_is_another_one_behind_dnat() -> None:
    """The engine in a container sees its own address and port, not the published ones."""
    assert of([flow(443, 0)], local=Local(8443, -1)) == Meeting(flow(443, 0), True)


def test_an_end_that_claims_have_named_is_hardly_that_of_another_claim() -> None:
    tags = Tags()
    assert of([flow(8443)], local=Local(8443, 0), tags=tags) == Meeting(flow(8443), True)
    assert of([flow(8443)], local=Local(443, 0), tags=tags) == Meeting(flow(8443), False)
    # A redirected one may be: another port, protocol or address.
    for record in (flow(20_050), flow(8443, flags=UDP), flow(8443, 1)):
        assert of([record], local=Local(443, 0), tags=tags) == Meeting(record, True)
        both = of([flow(8443), record], local=Local(443, 0), tags=tags)
        assert both == Meeting(record, True)


def test_what_dnat_leads_to_is_known_by_its_address() -> None:
    """443 and 8443 are published, both lead to 443: no claim of one takes the other its flows."""
    tags = Tags()
    for published in (443, 8443):
        for _ in range(2):
            found = of([flow(published)], local=Local(443, -1), tags=tags)
            assert found == Meeting(flow(published), True)


def test_a_second_flow_of_the_client_does_not_hide_the_one_that_dnat_leads_to() -> None:
    """A datagram to the port of the same number is enough for that."""
    junk, real = flow(443, flags=UDP), flow(2053)
    assert of([junk, real], local=Local(443, -1)) == Meeting(junk, True)
    mine = owned(junk, ALICE, TOLD)
    assert of([mine, real], local=Local(443, -1)) == Meeting(real, False)
    both = [mine, owned(real, ALICE, WEAK)]
    assert of(both, local=Local(443, -1)) == Meeting(mine, True)


def test_where_another_flow_of_the_client_has_just_ended_only_the_end_is_certain() -> None:
    def met(local: Local) -> Meeting | None:
        return meet([flow(443)], ALICE, b"", local, Tags(), never, earliest_ms, False, True)

    assert met(Local(443, 0)) == Meeting(flow(443), True)
    assert met(Local(8443, -1)) == Meeting(flow(443), False)


def test_the_first_word_with_a_tag_is_not_certain_where_another_tag_is_known() -> None:
    """Its inbound may share the end, as a fallback does, or listen at no port of a service."""
    tags, record = knowing(a=443), flow(443)
    assert not tags.fits(b"b -> out", record)
    assert of([record], tag=b"b", tags=tags) == Meeting(record, False)
    assert of([owned(record, BOB, PLAIN)], tag=b"b", tags=tags) == Meeting(
        owned(record, BOB, PLAIN), False
    )
    tags.learn(b"b", record)
    assert tags.fits(b"b -> out", record)
    assert of([record], tag=b"b", tags=tags) == Meeting(record, True)
    # A line without a tag says nothing about the inbound.
    assert of([record], tag=b"", tags=tags) == Meeting(record, True)


def test_one_tag_on_two_addresses_gives_each_claim_a_flow_of_its_own() -> None:
    tags = knowing(a=443)
    first, second = flow(443, 0, 1_000), flow(443, 1, 2_000)
    meeting = of([second, first], tag=b"a", tags=tags)
    assert meeting == Meeting(first, False)
    first = owned(first, ALICE, PLAIN)
    assert of([second, first], BOB, b"a", tags=tags) == Meeting(second, False)


def test_a_user_whose_flow_it_is_already_is_met_there_before_a_strangers() -> None:
    mine, others = flow(443, minor=ALICE), flow(8443, minor=BOB)
    for records in itertools.permutations([mine, others]):
        assert of(records) == Meeting(mine, False)


def test_a_flow_in_doubt_is_met_before_one_that_is_somebodys() -> None:
    doubtful = flow(443, minor=99, flags=RESTRICTED)
    assert of([flow(8443, minor=BOB), doubtful]) == Meeting(doubtful, False)


def test_a_claim_of_an_inbound_that_listens_elsewhere_says_nothing_against_an_owner() -> None:
    tags = knowing(a=443)
    assert of([flow(8443, minor=BOB)], tag=b"a", tags=tags) is None


@pytest.mark.parametrize(
    "record",
    [flow(8443), flow(8443, minor=99, flags=RESTRICTED), flow(8443, minor=BOB, flags=PROVISIONAL)],
    ids=["nobody's", "restricted", "in advance"],
)
def test_but_gives_away_weakly_what_is_nobodys(record: int) -> None:
    assert of([record], tag=b"a", tags=knowing(a=443)) == Meeting(record, False)


def test_what_was_given_weakly_is_not_certain_when_it_is_said_again() -> None:
    tags = knowing(a=443)
    record = owned(flow(8443), ALICE, WEAK)
    assert of([record], tag=b"a", tags=tags) == Meeting(record, False)
    record = owned(flow(8443), ALICE, PLAIN)
    assert of([record], tag=b"a", tags=tags) == Meeting(record, True)


def test_an_inbound_on_a_range_of_ports_says_nothing_about_the_end() -> None:
    tags = knowing(a=tuple(range(20_000, 20_017)))
    assert tags.ends(b"a") == frozenset()
    record = flow(29_999)
    assert tags.fits(b"a -> out", record)
    assert of([record], tag=b"a", tags=tags) == Meeting(record, True)


# -- births ---------------------------------------------------------------------------------------


def test_a_claim_older_than_its_flow_says_nothing() -> None:
    record = flow(born_ms=10_000, flags=REUSED)
    assert of([record], written=(2_000, 3_000)) is None


def test_a_claim_surely_younger_than_its_flow_is_certain() -> None:
    record = flow(born_ms=10_000, flags=REUSED)
    assert of([record], written=(10_000, 11_000)) == Meeting(record, True)


def test_a_claim_that_may_be_older_than_its_flow_is_weak() -> None:
    record = flow(born_ms=10_000, flags=REUSED)
    assert of([record], written=(9_500, 10_500)) == Meeting(record, False)


def test_the_event_of_a_birth_may_come_late() -> None:
    record = flow(born_ms=10_000, flags=REUSED)
    assert of([record], written=(9_000, 10_000 - SLACK_MS)) == Meeting(record, False)
    assert of([record], written=(9_000, 10_000 - SLACK_MS - 1)) is None


def test_on_a_flow_whose_birth_is_unknown_no_claim_is_certain() -> None:
    record = flow(flags=REUSED | VAGUE)
    assert of([record], written=(1e9, 1e9)) == Meeting(record, False)


def test_of_two_flows_the_one_that_lived_at_the_time_is_meant() -> None:
    old, young = flow(443, born_ms=1_000, flags=REUSED), flow(8443, born_ms=9_000, flags=REUSED)
    meeting = of([old, young], written=(2_000, 3_000))
    assert meeting is not None
    assert meeting.record == old


# -- what tags can do -----------------------------------------------------------------------------


def test_the_first_plain_word_teaches_a_tag() -> None:
    tags = Tags()
    assert tags.fits(b"a -> out", flow(443))
    assert tags.fits(b"a >> other", flow(443))
    assert not tags.fits(b"a -> out", flow(8443))
    assert tags.knows_elsewhere(b"b", flow(443))
    assert not tags.knows_elsewhere(b"a", flow(443))


def test_invented_tags_do_not_fill_our_memory() -> None:
    tags = Tags()
    for number in range(5_000):
        tags.fits(b"tag%d -> out" % number, flow(1 + number))
    assert len(tags._ends) <= 1_024
    assert len(tags._tags) <= 1_024


RECORDS = st.lists(
    st.builds(
        flow,
        st.sampled_from([443, 8443]),
        st.integers(0, 2),
        st.integers(0, 20_000),
        st.sampled_from([0, UDP, REUSED, REUSED | VAGUE, PROVISIONAL, RESTRICTED | REUSED]),
        st.sampled_from([0, ALICE, BOB]),
    ),
    max_size=4,
    unique_by=lambda record: record >> PORT_SHIFT & (1 << 28) - 1 | record & UDP,
)


@given(RECORDS, st.sampled_from([0, ALICE]), st.sampled_from([b"a", b"b", b""]),
       st.sampled_from([None, Local(443, 0), Local(80, -1)]), st.integers(0, 20_000),
       st.integers(0, 5_000))  # fmt: skip
def test_what_is_met_is_there_and_what_was_born_later_never(
    records: list[int], claimed: int, tag: bytes, local: Local | None, since: int, length: int
) -> None:
    until = since + length
    meeting = of(records, claimed, tag, local, knowing(a=443, b=(443, 8443)), (since, until))
    if meeting is None:
        return
    assert meeting.record in records
    born_ms = meeting.record >> BIRTH_SHIFT
    if meeting.record & REUSED and not meeting.record & VAGUE:
        assert born_ms - SLACK_MS <= until
    if meeting.certain:
        assert not meeting.record & VAGUE
        assert not meeting.record & REUSED or born_ms <= since
