"""What keys choose on the screen of top."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.choosing import (
    BACKSPACE,
    DOWN,
    END,
    ENTER,
    ESCAPE,
    HOME,
    PAGE_DOWN,
    PAGE_UP,
    UP,
    Choice,
)
from vff_qos.core.figures import SORTS, Figures, Moment
from vff_qos.core.owners import Owner


def users(*flows: int) -> list[Figures]:
    """u2, u3, ... with so many connections each."""
    moment = Moment(0x5100, flows=dict(enumerate(flows, 2)))
    return [Figures(moment, Owner(f"u{minor}", minor), f"u{minor}") for minor in moment.flows]


def names(found: list[Figures]) -> list[str]:
    return [one.name for one in found]


def press(choice: Choice, *keys: str) -> None:
    for key in keys:
        choice.press(key)


def test_each_order_comes_once_in_a_round() -> None:
    choice, seen = Choice(), []
    for _ in SORTS:
        seen.append(choice.sort)
        press(choice, "s")
    assert seen == list(SORTS) and choice.sort == "rate"
    press(choice, "S")
    assert choice.sort == list(SORTS)[-1]


def test_the_picked_user_is_followed_and_a_row_is_not() -> None:
    choice = Choice(sort="flows")
    shown = choice.order(users(1, 2, 3))
    assert names(shown) == ["u4", "u3", "u2"]
    choice.move(DOWN, shown, 10)
    assert choice.picked == "u3"
    choice.order(users(1, 9, 3))
    assert choice.index == 0
    press(choice, "r")
    choice.order(users(1, 9, 3))
    assert choice.index == 2
    press(choice, "s")  # another order begins at its top
    choice.order(users(1, 9, 3))
    assert (choice.picked, choice.index) == ("", 0)


def test_whoever_was_picked_may_go_away() -> None:
    choice = Choice(sort="name")
    choice.move(END, choice.order(users(1, 1, 1)), 10)
    choice.order(users(1))
    assert choice.index == 0
    choice.order([])
    assert choice.index == 0
    choice.move(DOWN, [], 10)


def test_a_filter_is_typed() -> None:
    choice = Choice()
    press(choice, "/", "s", "p", BACKSPACE, "q", ENTER)
    assert choice.patterns == ["*sq*"] and choice.typed is None
    assert (choice.sort, choice.paused) == ("rate", False)
    press(choice, "/", "x", ESCAPE)
    assert choice.patterns == ["*sq*"]
    press(choice, "/", "*", "@", "x", ENTER)
    assert choice.patterns == ["*@x"]
    press(choice, "/", " ", ENTER)
    assert choice.patterns == []


def test_other_keys_are_not_ours() -> None:
    assert not Choice().press("z")
    assert not Choice().press(ENTER)


@given(
    st.lists(st.sampled_from([UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END, "j", "k", "s", "r"])),
    st.integers(0, 30),
    st.integers(1, 12),
)
def test_the_picked_row_is_always_on_the_screen(keys: list[str], count: int, room: int) -> None:
    choice = Choice()
    shown = choice.order(users(*range(count)))
    for key in keys:
        if not choice.press(key):
            choice.move(key, shown, room)
        shown = choice.order(users(*range(count)))
        rows = choice.window(len(shown), room)
        assert len(rows) == min(count, room)
        assert not count or choice.index in rows
