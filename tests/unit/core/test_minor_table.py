"""A table by minor is a mapping like any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.minor_table import MinorTable


@given(st.dictionaries(st.integers(0, 0xFFFF), st.integers(0, 2**63 - 1), max_size=50))
def test_it_holds_what_a_dictionary_would(given_: dict[int, int]) -> None:
    table = MinorTable(given_.items())
    assert dict(table) == given_
    assert list(table) == sorted(given_)
    assert len(table) == len(given_)
    for minor in (0, 1, 2, 0xFFFB, 0xFFFC, 0xFFFE, 0xFFFF, -1, *given_):
        assert table.get(minor) == given_.get(minor)
        assert (minor in table) == (minor in given_)
