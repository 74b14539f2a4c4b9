"""Judge and mirror together, against a world that knows the truth."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkout import SAMPLES

from .truth import World

#: Two million in `make soak`.
LINES = int(os.environ.get("VFF_QOS_LINES", "200000"))
REAL_LINES = [
    line for path in sorted(SAMPLES.glob("*.log")) for line in path.read_bytes().splitlines()
]
SMALL = st.integers(0, 7)
STEPS = st.one_of(
    st.tuples(st.just("born"), SMALL, SMALL, st.integers(0, 3), SMALL),
    st.tuples(st.just("honest"), SMALL),
    st.tuples(st.just("near_text"), SMALL, st.booleans()),
    st.tuples(st.just("lie"), SMALL, SMALL, SMALL, st.booleans()),
    st.tuples(st.just("reborn"), SMALL, SMALL),
    st.tuples(st.just("die"), SMALL),
    st.tuples(st.just("check")),
    st.tuples(st.just("flush"), SMALL),
    st.tuples(st.just("lose"), SMALL, SMALL),
    st.tuples(st.just("restart"), SMALL),
    st.tuples(st.just("lie_of_nothing"), SMALL, SMALL),
)
#: A flow's word, its end, and another user's flow from the same end with its word.
WITHIN_A_MILLISECOND: list[tuple[Any, ...]] = [
    ("born", 6, 2, 1, 3), ("check",), ("honest", 5), ("reborn", 3, 1), ("honest", 5), ("check",)
]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, trees: tuple[str, str]) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_no_lie_and_no_accident_takes_a_flow_from_its_user(world: World) -> None:
    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(steps=st.lists(STEPS, max_size=40))
    @example(steps=WITHIN_A_MILLISECOND)
    def live(steps: list[tuple[Any, ...]]) -> None:
        world.begin()
        for name, *numbers in steps:
            getattr(world, name)(*numbers)
        world.check()

    live()


def _noise(source: random.Random) -> bytes:
    """A real line with a few bytes changed, or none at all like one."""
    if source.random() < 0.3:
        return source.randbytes(source.randrange(120)).replace(b"\n", b" ")
    line = bytearray(source.choice(REAL_LINES))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(line))
        if source.random() < 0.5:
            line[at] = source.randrange(256)
        else:
            del line[at : at + source.randrange(8)]
        line = line or bytearray(b" ")
    return bytes(line)


@pytest.mark.timeout(1_800)
def test_many_lines_and_restarts_leave_no_wrong_mark(world: World) -> None:
    source = random.Random(20261125)
    number = source.randrange

    def step() -> None:
        what = source.random()
        if what < 0.2 or len(world.live) < 40:
            world.born(number(4), number(8), number(400), number(3))
        elif what < 0.45:
            world.honest(number(1_000))
        elif what < 0.55:
            world.near_text(number(1_000), source.random() < 0.3)
        elif what < 0.8:
            world.lie(number(1_000), number(8), number(3), source.random() < 0.3)
        elif what < 0.88:
            world.lie_of_nothing(number(400), number(8))
        elif what < 0.94 or len(world.live) > 120:
            world.die(number(1_000))
        else:
            world.reborn(number(1_000), number(8))

    blocks = 0
    while world.lines < LINES:
        for _ in range(60):
            step()
        blocks += 1
        if blocks % 5 == 0:
            world.noise(b"\n".join(_noise(source) for _ in range(400)))
        if blocks % 7 == 0:
            world.flush(number(5))
        if blocks % 11 == 0:
            world.lose(number(1_000), number(1_000))
        if blocks % 23 == 0:
            world.restart(number(1_000), number(1_000))
        world.check()
        if blocks % 50 == 0:
            world.begin()
    assert world.restarts > 3
    print(f"{world.lines} lines, {blocks} looks, {world.restarts} restarts")
