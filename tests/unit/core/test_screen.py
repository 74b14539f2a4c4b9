"""Lines of a screen: they fit, whatever the width and the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.figures import Figures, Moment
from vff_qos.core.htb import ClassState, HtbClass
from vff_qos.core.owners import RESTRICTED_KEY, Owner
from vff_qos.core.screen import (
    ASCII,
    BAD,
    BLOCKS,
    COLUMNS,
    GOOD,
    STYLES,
    WARN,
    Glyphs,
    TableRow,
    bar,
    fit,
    glyphs_for,
    head,
    row_line,
    safe,
    short,
    sparkline,
    width_of,
    widths,
    wrap,
)

ALL = [BLOCKS, ASCII]


def row(
    up_bps: int = 19_000_000, down_bps: int = 50_000_000, key: str = "alice@example.com"
) -> TableRow:
    def state(ceil_bps: int) -> ClassState:
        return ClassState(1, HtbClass(1, ceil_bps, 1, 1, 1), 1, 1, 0, 0)

    moment = Moment(
        0x5100,
        ({2: state(20_000_000), 1: state(10**9)}, {2: state(100_000_000), 1: state(10**9)}),
        ({2: 0, 1: 0}, {2: 0, 1: 0}),
        ({2: up_bps // 8, 1: 0}, {2: down_bps // 8, 1: 0}),
        1.0,
        flows={2: 12},
        addresses={2: 3},
    )
    return TableRow(Figures(moment, Owner(key, 2), key), "pro", [0.0] * 11 + [69e6], 10**9)


def text_of(shown: TableRow, width: int, glyphs: Glyphs = ASCII) -> str:
    return "".join(piece.text for piece in row_line(shown, widths(width), glyphs))


def test_all_that_is_known_fits_into_80_columns() -> None:
    assert list(widths(80)) == list(COLUMNS)
    assert head(widths(80), "rate", ASCII) == (
        "user            plan      UP  DOWN     limit full  minute drop flow addr held by"
    )
    assert text_of(row(), 80) == (
        "alice@example.~ pro      19M   50M  20M/100M #####      #    0   12    3 limit  "
    )


def test_what_is_left_goes_to_names_and_plots() -> None:
    wide = text_of(row(), 120)
    assert wide.startswith("alice@example.com ") and "own limit" in wide


@given(st.integers(1, 250), st.text(max_size=60), st.sampled_from(ALL))
def test_a_line_is_as_wide_as_it_should_be(width: int, name: str, glyphs: Glyphs) -> None:
    columns = widths(width)
    total = sum(columns.values()) + len(columns) - 1
    assert total <= width
    assert width_of(text_of(row(key=name or "x"), width, glyphs)) == total
    assert width_of(head(columns, "name", glyphs)) == total
    assert all(piece.style in STYLES for piece in row_line(row(), columns, glyphs))


@given(st.text(max_size=80), st.integers(0, 40), st.booleans(), st.sampled_from(ALL))
def test_text_is_cut_to_its_columns_and_holds_no_control(
    text: str, width: int, right: bool, glyphs: Glyphs
) -> None:
    shown = fit(text, width, glyphs, right)
    assert width_of(shown) == width
    assert shown.isprintable()
    assert not glyphs.is_ascii or shown.isascii()


def test_no_name_moves_the_cursor() -> None:
    assert safe("a\x1b[2Jb\u202ec", BLOCKS) == "a?[2Jb?c"
    assert safe("жанна", ASCII) == "?????"
    assert safe("жанна", BLOCKS) == "жанна"


def test_names_in_wide_letters_take_their_columns() -> None:
    assert fit("用户用户", 5, BLOCKS) == "用户…"
    assert fit("用户", 6, BLOCKS) == "用户  "


@given(st.text(max_size=200), st.integers(1, 100))
def test_a_wrapped_line_loses_nothing_but_spaces(text: str, width: int) -> None:
    lines = wrap(text, width, BLOCKS)
    assert all(width_of(line) <= max(width, 8) for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", safe(text, BLOCKS))


@pytest.mark.parametrize(
    ("number", "width", "text"),
    [(0, 5, "0"), (999, 5, "999"), (999.6, 5, "1k"), (1_234, 5, "1.23k"), (20e6, 5, "20M"),
     (99.96e6, 5, "100M"), (123_456, 4, "123k"), (12_345, 4, "12k"), (1_234, 4, "1.2k"),
     (10**13, 5, "10T")],
)  # fmt: skip
def test_numbers_are_short(number: float, width: int, text: str) -> None:
    assert short(number, width) == text


@given(st.floats(0, 9e14), st.integers(4, 9))
def test_no_number_is_longer_than_its_column(number: float, width: int) -> None:
    assert len(short(number, width)) <= width


def test_a_bar_shows_how_full_something_is() -> None:
    assert bar(0.5, 10, ASCII) == "#####....."
    assert bar(0.5, 5, BLOCKS) == "██▌  "
    assert bar(0.0, 3, BLOCKS) == "   "
    assert bar(0.002, 3, BLOCKS) == "▏  "
    assert bar(1.4, 3, ASCII) == "###"


def test_a_sparkline_is_the_minute_whatever_its_width() -> None:
    minute = [0.0, 0.0, 5.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert sparkline(minute, 0, 12, BLOCKS) == "  ▄  █      "
    assert sparkline(minute, 0, 6, ASCII) == " =#   "


def test_what_is_nearly_full_is_seen_by_its_style() -> None:
    def style(up_bps: int) -> str:
        names = list(widths(80))
        return row_line(row(up_bps, 0), widths(80), ASCII)[2 * names.index("full")].style

    assert [style(n * 1_000_000) for n in (1, 14, 19)] == [GOOD, WARN, BAD]


def test_no_limit_but_that_of_the_node_and_no_class() -> None:
    shown = row()._replace(ceil_bps=100_000_000)
    assert " 20M/- " in text_of(shown, 80)
    shown.figures.moment.classes[0].pop(2)  # type: ignore[attr-defined]
    assert " no class " in text_of(shown, 80)


def test_connections_in_doubt_are_told() -> None:
    assert text_of(row(1, 1, RESTRICTED_KEY + "01020304"), 80).rstrip().endswith("restr.")


@pytest.mark.parametrize(
    ("environ", "codeset", "glyphs"),
    [
        ({"LANG": "en_US.UTF-8", "TERM": "xterm-256color"}, "UTF-8", BLOCKS),
        ({"LANG": "C", "LC_ALL": "de_DE.utf8", "TERM": "screen"}, "UTF-8", BLOCKS),
        ({"LC_CTYPE": "en_US.UTF-8", "TERM": "xterm"}, "UTF-8", BLOCKS),
        # What Python makes of the locale C, PEP 538.
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8", "TERM": "xterm"}, "UTF-8", ASCII),
        ({"TERM": "xterm"}, "UTF-8", ASCII),
        ({"LANG": "C.UTF-8", "LC_ALL": "C", "TERM": "xterm"}, "ANSI_X3.4-1968", ASCII),
        ({"LANG": "ru_RU.KOI8-R", "TERM": "xterm"}, "KOI8-R", ASCII),
        ({"LANG": "en_US.UTF-8", "TERM": "xterm"}, "ANSI_X3.4-1968", ASCII),
        ({"LANG": "en_US.UTF-8", "TERM": "vt100"}, "UTF-8", ASCII),
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, "UTF-8", ASCII),
    ],
)
def test_blocks_only_where_the_terminal_shows_them(
    environ: dict[str, str], codeset: str, glyphs: Glyphs
) -> None:
    assert glyphs_for(environ, codeset) == glyphs
