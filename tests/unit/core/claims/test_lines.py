"""From pieces of a stream to whole lines, wherever it is cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.lines import MAX_CARRY_BYTES, Assembler


@given(lines=st.lists(st.binary(max_size=50).map(lambda b: b.replace(b"\n", b"")), max_size=20),
       cuts=st.lists(st.integers(0, 1000), max_size=10))  # fmt: skip
def test_lines_survive_any_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    assembler = Assembler()
    out = b"".join(assembler.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    assert out == data
    assert assembler.pending == 0


def test_an_endless_line_is_dropped_up_to_the_next() -> None:
    assembler = Assembler()
    for _ in range(MAX_CARRY_BYTES // 1000 + 5):
        assert assembler.feed(b"x" * 1000) == b""
    assert assembler.pending <= MAX_CARRY_BYTES
    assert assembler.feed(b"tail\ngood\n") == b"good\n"
    assert assembler.overlong == 1
