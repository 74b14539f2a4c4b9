"""A table by minor is a mapping like any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.minor_table import ByMinor, MinorTable


@given(st.dictionaries(st.integers(0, 0xFFFF), st.integers(0, 2**63 - 1), max_size=50))
def test_it_holds_what_a_dictionary_would(given_: dict[int, int]) -> None:
    table = MinorTable(given_.items())
    assert dict(table) == given_
    assert list(table) == sorted(given_)
    assert list(table.items()) == sorted(given_.items())
    assert len(table) == len(given_)
    for minor in (0, 1, 2, 0xFFFB, 0xFFFC, 0xFFFE, 0xFFFF, -1, *given_):
        assert table.get(minor) == given_.get(minor)
        assert (minor in table) == (minor in given_)


_MINORS = st.sampled_from([2, 3, 255, 256, 257, 3_000, 0xFFF0, 0xFFFD, 0xFFFE])


@given(st.lists(st.tuples(st.sampled_from(["put", "pop", "get"]), _MINORS)))
def test_by_minor_is_a_dictionary_that_is_sorted(steps: list[tuple[str, int]]) -> None:
    table: ByMinor[str] = ByMinor()
    truth: dict[int, str] = {}
    for number, (what, minor) in enumerate(steps):
        if what == "put":
            table[minor] = truth[minor] = str(number)
        elif what == "pop":
            assert table.pop(minor, None) == truth.pop(minor, None)
        assert table.get(minor) == truth.get(minor)
        assert (minor in table) == (minor in truth)
        assert len(table) == len(truth)
    assert list(table.items()) == sorted(truth.items())
    assert list(table.values()) == [truth[minor] for minor in sorted(truth)]
    for minor in (-1, 1, 70_000):
        with pytest.raises(KeyError):
            table[minor]
        with pytest.raises(KeyError):
            del table[minor]
