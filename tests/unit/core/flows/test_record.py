"""A flow's number: what is put in comes out, and nothing touches what is beside it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.flows import record as r

FLAGS = (r.RESTRICTED, r.PROVISIONAL, r.FOREIGN, r.REUSED, r.VAGUE, r.REMEMBERED, r.UDP)
ANY = st.builds(
    lambda minor, rank, flags, port, address, birth: (
        minor
        | rank << r.RANK_SHIFT
        | sum(set(flags))
        | port << r.PORT_SHIFT
        | address << r.ADDRESS_SHIFT
        | birth << r.BIRTH_SHIFT
    ),
    st.integers(0, 0xFFFF),
    st.integers(0, 7),
    st.lists(st.sampled_from(FLAGS)),
    st.integers(0, 0xFFFF),
    st.integers(0, r.MAX_ADDRESSES - 1),
    st.integers(0, 1 << 45),
)


def test_no_two_things_share_a_bit() -> None:
    parts = (
        r.MINOR, r.RANK, *FLAGS, 0xFFFF << r.PORT_SHIFT, (r.MAX_ADDRESSES - 1) << r.ADDRESS_SHIFT,
        1 << r.BIRTH_SHIFT,
    )  # fmt: skip
    assert sum(parts) == (1 << r.BIRTH_SHIFT + 1) - 1


def test_the_name_of_our_end_is_protocol_port_and_address() -> None:
    end = r.UDP | 0xFFFF << r.PORT_SHIFT | (r.MAX_ADDRESSES - 1) << r.ADDRESS_SHIFT
    assert end == r.END


@given(ANY, st.integers(1, 0xFFFF), st.integers(0, 7), st.sampled_from([0, *FLAGS[:2]]))
def test_giving_a_flow_away_changes_neither_its_end_nor_its_birth(
    record: int, minor: int, rank: int, flag: int
) -> None:
    after = r.owned(record, minor, rank, flag)
    assert (after & r.MINOR, r.rank(after), after & r.RESTRICTED | after & r.PROVISIONAL) == (
        minor, rank, flag,
    )  # fmt: skip
    assert not after & r.REMEMBERED
    kept = ~r.OWNED
    assert after & kept == record & kept == r.unowned(record)
    assert r.port(after) == r.port(record)
    assert r.birth_ms(after) == r.birth_ms(record)


@given(ANY)
def test_what_is_given_away_without_a_second_look_is_nobodys_and_certain(record: int) -> None:
    plain = not record & r.NOT_PLAIN
    doubts = (r.RESTRICTED, r.PROVISIONAL, r.FOREIGN, r.VAGUE)
    assert plain == (not any(record & flag for flag in doubts) and not record & r.MINOR)
