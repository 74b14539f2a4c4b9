"""Lines of a text screen: columns for a width, bars, sparklines, with and without UTF-8.

A line is a list of pieces, each with a style that whoever draws it knows: `STYLES`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from .figures import Figures
from .health.holding import LIMIT, NODE, PENALTY, RESTRICTED
from .minute import CELLS, heights

PLAIN, TITLE, PICKED, GOOD, WARN, BAD, DIM = "", "title", "picked", "good", "warn", "bad", "dim"
STYLES = (PLAIN, TITLE, PICKED, GOOD, WARN, BAD, DIM)
#: From these shares of a limit on it is nearly, or quite, full.
_NEARLY, _FULL = 0.7, 0.9
#: Terminals whose fonts have no blocks, or that know no UTF-8.
_POOR = ("linux", "vt100", "vt102", "vt220", "ansi", "dumb")


class Piece(NamedTuple):
    """Text in one style."""

    text: str
    style: str = PLAIN


Line = list[Piece]


class Glyphs(NamedTuple):
    """What bars and sparklines are made of, the smallest first; ``cut`` ends what was too long."""

    spark: str
    bar: str
    empty: str
    cut: str
    is_ascii: bool


BLOCKS = Glyphs("▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█", " ", "…", False)
ASCII = Glyphs(".:-=+*#", "#", ".", "~", True)


def glyphs_for(environ: Mapping[str, str], codeset: str) -> Glyphs:
    """What a terminal can show, by its name and the locale.

    Where the locale is C, Python takes C.UTF-8 for itself (PEP 538): that says nothing of the
    terminal.
    """
    wanted = environ.get("LC_ALL") or environ.get("LANG", "")
    if not environ.get("LC_ALL") and environ.get("LC_CTYPE", "C.UTF-8") != "C.UTF-8":
        wanted = environ["LC_CTYPE"]
    names_it = wanted.upper().replace("-", "").endswith("UTF8")
    knows_it = codeset.upper().replace("-", "") == "UTF8"
    poor = environ.get("TERM", "").partition("-")[0] in _POOR
    return BLOCKS if names_it and knows_it and not poor else ASCII


# -- text -----------------------------------------------------------------------------------------


def safe(text: str, glyphs: Glyphs) -> str:
    """Text that moves no cursor and is no control sequence, whoever wrote it."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown.encode("ascii", "replace").decode() if glyphs.is_ascii else shown


def width_of(text: str) -> int:
    """Columns that text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int, glyphs: Glyphs, right: bool = False) -> str:
    """Exactly ``width`` columns of text; what is cut says so."""
    text = safe(text, glyphs)
    if width_of(text) > width:
        kept, used = "", 0
        for char in text:
            used += _columns(char)
            if used > width - 1:
                break
            kept += char
        text = kept + glyphs.cut if width > 0 else ""
    pad = " " * (width - width_of(text))
    return pad + text if right else text + pad


def wrap(text: str, width: int, glyphs: Glyphs) -> list[str]:
    """A line as several, at spaces where there are any; those that follow stand further right."""
    width = max(width, 8)
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    text = safe(text, glyphs)
    lines: list[str] = []
    while width_of(text) > width:
        at = len(text)
        while width_of(text[:at]) > width:
            at -= 1
        space = text.rfind(" ", len(indent) if lines else len(indent) - 1, at + 1)
        at = space if space > 0 else at
        lines.append(text[:at].rstrip())
        text = indent[: width // 2] + text[at:].lstrip()
    return [*lines, text]


def short(number: float, width: int = 5) -> str:
    """A number to three digits, to fewer where ``width`` (4 at least) has no room: ``12.3k``."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            break
        number /= 1_000
    decimals = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    while True:
        text = f"{number:.{decimals}f}"
        text = (text.rstrip("0").rstrip(".") if decimals else text) + unit
        if len(text) <= width or not decimals:
            return text
        decimals -= 1


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """How full something is; what is not empty shows at least the smallest mark."""
    steps = len(glyphs.bar)
    filled = min(width * steps, max(round(share * width * steps), 1 if share > 0.001 else 0))
    whole, part = divmod(filled, steps)
    text = glyphs.bar[-1] * whole + (glyphs.bar[part - 1] if part else "")
    return text + glyphs.empty * (width - len(text))


def sparkline(rates: list[float], limit_bps: int, width: int, glyphs: Glyphs) -> str:
    """The last minute; where there is less room two cells are one column, the higher counts."""
    while len(rates) > width and len(rates) > 1:
        rates = [max(rates[at : at + 2]) for at in range(0, len(rates), 2)]
    marks = " " + glyphs.spark
    return "".join(marks[height] for height in heights(rates, limit_bps, len(glyphs.spark)))[:width]


# -- the table ------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column; the one with the highest ``rank`` goes first where there is too little room."""

    title: str
    least: int
    most: int
    rank: int
    right: bool = False


COLUMNS: dict[str, Column] = {
    "user": Column("user", 13, 40, 0),
    "plan": Column("plan", 6, 12, 7),
    "up": Column("up", 5, 5, 1, True),
    "down": Column("down", 5, 5, 2, True),
    "limit": Column("limit", 9, 13, 4, True),
    "full": Column("full", 5, 10, 5),
    "minute": Column("minute", CELLS // 2, CELLS, 8),
    "drops": Column("drop", 4, 7, 9, True),
    "flows": Column("flow", 4, 6, 6, True),
    "addresses": Column("addr", 4, 4, 10, True),
    "held": Column("held by", 7, 10, 3),
}
#: Which columns take what is left, and up to which width, in this order.
_GROWS = (("user", 20), ("held", 10), ("minute", CELLS), ("limit", 13), ("full", 10), ("plan", 12),
          ("drops", 7), ("flows", 6), ("user", 40))  # fmt: skip

#: What holds somebody: in a wide column and in a narrow one.
HELD = {
    PENALTY: ("penalty", "penalty"),
    LIMIT: ("own limit", "limit"),
    NODE: ("node full", "node"),
    RESTRICTED: ("restricted", "restr."),
    "": ("", ""),
}


def widths(width: int, left_out: tuple[str, ...] = ()) -> dict[str, int]:
    """Columns that have room within ``width``, in their order, with their widths."""
    found = {name: column.least for name, column in COLUMNS.items() if name not in left_out}
    while sum(found.values()) + len(found) - 1 > width and len(found) > 1:
        del found[max(found, key=lambda name: COLUMNS[name].rank)]
    left = width - sum(found.values()) - len(found) + 1
    if left < 0:
        return {"user": max(1, width)}
    for name, most in _GROWS:
        if name in found:
            more = max(0, min(left, most - found[name]))
            found[name] += more
            left -= more
    return found


class TableRow(NamedTuple):
    """A user's figures, and what they alone do not say.  ``plan`` is empty where none is known."""

    figures: Figures
    plan: str
    minute: list[float]
    ceil_bps: int


def head(columns: dict[str, int], sort: str, glyphs: Glyphs) -> str:
    """The titles; the one that the table is sorted by is in capitals."""
    by = {"rate": ("up", "down"), "name": ("user",)}.get(sort, (sort,))
    return " ".join(
        fit(
            COLUMNS[name].title.upper() if name in by else COLUMNS[name].title,
            width, glyphs, COLUMNS[name].right,
        )
        for name, width in columns.items()
    )  # fmt: skip


def row_line(
    row: TableRow, columns: dict[str, int], glyphs: Glyphs, has_rates: bool = True
) -> Line:
    """One user in a line."""
    figures, pieces = row.figures, []
    for name, width in columns.items():
        style = PLAIN
        if name == "full":
            share = figures.share
            style = BAD if share >= _FULL else WARN if share >= _NEARLY else GOOD
            text = bar(share, width, glyphs)
        elif name == "minute":
            limits = [figures.ceil_bps(direction) or 0 for direction in (0, 1)]
            text = sparkline(row.minute, max(limits), width, glyphs).rjust(width)
        elif name == "held":
            kind = figures.held_by
            wide, narrow = HELD[kind]
            style = WARN if kind in (NODE, RESTRICTED) else BAD if kind else PLAIN
            text = fit(wide if width >= len(wide) else narrow, width, glyphs)
        else:
            text = fit(_text(row, name, width, has_rates), width, glyphs, COLUMNS[name].right)
        pieces += [Piece(text, style), Piece(" ")]
    return pieces[:-1]


def _text(row: TableRow, name: str, width: int, has_rates: bool) -> str:
    figures = row.figures
    if name == "user":
        return figures.name
    if name == "plan":
        return row.plan
    if name in ("up", "down"):
        return short(getattr(figures, f"{name}_rate_bps")) if has_rates else "-"
    if name == "limit":
        return _limit(row)
    return short(getattr(figures, name), width)


def _limit(row: TableRow) -> str:
    """Up and down; ``-`` stands for none but the node's."""
    both = [row.figures.ceil_bps(direction) for direction in (0, 1)]
    if None in both:
        return "no class"
    shown = [short(bps or 0) if (bps or 0) < row.ceil_bps // 8 * 8 else "-" for bps in both]
    return "-" if shown == ["-", "-"] else "/".join(shown)
