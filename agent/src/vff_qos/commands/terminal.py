"""The terminal of ``vff-qos top``: a screen of curses(3), and what the keys do."""

from __future__ import annotations

import contextlib
import curses
import locale
import os
import time
from collections.abc import Callable, Iterator

from ..config import Paths
from ..core.choosing import (
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
    steps,
)
from ..core.figures import Figures
from ..core.health.findings import DEGRADED, OK
from ..core.pace import Pace
from ..core.screen import (
    BAD,
    DIM,
    GOOD,
    PICKED,
    PLAIN,
    TITLE,
    WARN,
    Glyphs,
    Line,
    Piece,
    TableRow,
    fit,
    glyphs_for,
    head,
    row_line,
    width_of,
    widths,
    wrap,
)
from ..errors import QosError, Refused
from .node import Node
from .watch import Due, Watch, headline, traffic

#: Shares of a core that the parts may take: together less than 2 %, keys included.  The counters,
#: everything but them, and one user's explanation.
_COUNT_SHARE = 0.011
_LOOK, _DETAIL = Pace(share=0.006, least_s=5.0), Pace(share=0.01, least_s=3.0)
#: A key is answered within so long although something is due, in milliseconds.
_WAIT_MS = 50
_KEYS = {
    27: ESCAPE, 10: ENTER, 13: ENTER, curses.KEY_ENTER: ENTER, 8: BACKSPACE, 127: BACKSPACE,
    curses.KEY_BACKSPACE: BACKSPACE, curses.KEY_UP: UP, curses.KEY_DOWN: DOWN,
    curses.KEY_PPAGE: PAGE_UP, curses.KEY_NPAGE: PAGE_DOWN, curses.KEY_HOME: HOME,
    curses.KEY_END: END,
}  # fmt: skip
_HELP = """\
keys
  up, down, page up, page down, home, end   pick a user
  enter      their connections, and why they have these limits; again or escape: back
  s, S       sort by the next, or the former figure: the one in capitals
  r          the other way round
  /          show only users that fit: part of a name, or a pattern such as *@x; empty: all
  space, p   stop, and go on
  q          quit

columns
  up, down   bits a second at this moment; limit: the same, '-' is none but the node's
  full       how much of their limit they use, in the direction where it is more
  minute     the last 60 seconds; the highest is full height
  drop       packets that their queues have dropped; flow: connections; addr: addresses
  held by    own limit; node full: all share it; penalty: of fair use or a quota;
             restricted: connections in doubt, from this user's addresses
"""


def show(paths: Paths, patterns: list[str], sort: str, interval_s: float) -> None:
    """The live table, until somebody quits.  Raises Refused where the terminal is not fit."""
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        locale.setlocale(locale.LC_ALL, "C")
    try:
        curses.setupterm()
    except curses.error as error:
        raise Refused(
            f"TERM={os.environ.get('TERM', '')!r}: this system knows no such terminal ({error}); "
            "try TERM=xterm, or 'vff-qos top --once'"
        ) from error
    if not curses.tigetstr("cup"):
        raise Refused(
            f"TERM={os.environ.get('TERM', '')!r}: this terminal cannot move its cursor; "
            "try TERM=xterm, or 'vff-qos top --once'"
        )
    codeset = locale.nl_langinfo(locale.CODESET)
    glyphs = glyphs_for(os.environ, codeset)
    watch = Watch(paths)
    os.environ.setdefault("ESCDELAY", "25")
    try:
        # An interrupt is another way to quit.
        with contextlib.suppress(KeyboardInterrupt), _screen() as window:
            _Top(window, watch, glyphs, Choice(patterns, sort), interval_s).run()
    finally:
        watch.close()


@contextlib.contextmanager
def _screen() -> Iterator[curses.window]:
    """The terminal as curses has it; as before afterwards, whatever happens.

    Not curses.wrapper: it begins with colors, also where nobody wants them.
    """
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        with contextlib.suppress(curses.error):  # a terminal whose cursor is always there
            curses.curs_set(0)
        yield window
    finally:
        window.keypad(False)
        curses.endwin()


class _Detail:
    """What is known of one user, as lines."""

    def __init__(self, title: str, read: Callable[[], str]) -> None:
        self.title, self._read = title, read
        self.due = Due(_DETAIL)
        self.text = ""
        self.offset = 0

    def look(self) -> None:
        cpu_s = time.thread_time()
        try:
            self.text = self._read()
        except QosError as error:
            self.text = str(error)
        self.due.took(time.thread_time() - cpu_s)


class _Top:
    """The screen, and what the keys do."""

    def __init__(
        self,
        window: curses.window,
        watch: Watch,
        glyphs: Glyphs,
        choice: Choice,
        interval_s: float,
    ) -> None:
        self._window, self._watch, self._glyphs = window, watch, glyphs
        self._choice = choice
        self._count = Due(Pace(_COUNT_SHARE, interval_s))
        self._look = Due(_LOOK)
        self._found: list[Figures] = []
        self._detail: _Detail | None = None
        self._styles = self._make_styles()
        self._trouble = ""

    @staticmethod
    def _make_styles() -> dict[str, int]:
        styles = {
            PLAIN: curses.A_NORMAL, TITLE: curses.A_REVERSE, PICKED: curses.A_REVERSE,
            GOOD: curses.A_NORMAL, WARN: curses.A_BOLD, BAD: curses.A_BOLD, DIM: curses.A_DIM,
        }  # fmt: skip
        if curses.has_colors() and not os.environ.get("NO_COLOR"):
            curses.start_color()
            curses.use_default_colors()
            colors = {GOOD: curses.COLOR_GREEN, WARN: curses.COLOR_YELLOW, BAD: curses.COLOR_RED}
            for number, (style, color) in enumerate(colors.items(), 1):
                curses.init_pair(number, color, -1)
                styles[style] = curses.color_pair(number)
        return styles

    def run(self) -> None:
        """Until somebody quits, or the terminal is gone."""
        self._watch.begin()
        self._select()
        self._draw()
        self._count.took(0.0)
        while True:
            self._work()
            self._window.timeout(self._wait_ms())
            key = self._window.getch()
            if key == -1:
                if not os.isatty(0):
                    return
                continue
            if key != curses.KEY_RESIZE and not self._press(self._name(key)):
                return
            self._draw()

    # -- looking ----------------------------------------------------------------------------------

    def _wait_ms(self) -> int:
        due = [self._look.due_s, self._count.due_s]
        if self._detail is not None:
            due = [self._detail.due.due_s]
        if self._choice.paused:
            return 1_000
        return max(_WAIT_MS, round((min(due) - time.monotonic()) * 1_000))

    def _work(self) -> None:
        """What is due."""
        now_s, cpu_s = time.monotonic(), time.thread_time()
        if self._choice.paused:
            return
        if self._detail is not None:
            if now_s >= self._detail.due.due_s:
                self._detail.look()
                self._draw()
            return
        if now_s >= self._look.due_s:
            self._try(self._watch.look)
            self._watch.read_policy()
            self._select()
            self._draw()
            self._look.took(time.thread_time() - cpu_s)
        elif now_s >= self._count.due_s:
            self._try(self._watch.count)
            self._select()
            self._draw()
            self._count.took(time.thread_time() - cpu_s)

    def _try(self, work: Callable[[], None]) -> None:
        """What fails is said where the verdict stands; the next look may find it whole."""
        try:
            work()
        except QosError as error:
            self._trouble = str(error)
            self._look.due_s = min(self._look.due_s, time.monotonic() + 1.0)
        else:
            self._trouble = ""

    def _select(self) -> None:
        self._found = self._choice.order(self._watch.users(self._choice.patterns))

    # -- keys -------------------------------------------------------------------------------------

    @staticmethod
    def _name(key: int) -> str:
        return _KEYS.get(key) or (chr(key) if 32 <= key < 127 else "")

    def _press(self, key: str) -> bool:
        """Whether to go on."""
        choice = self._choice
        if self._detail is not None:
            self._press_in_detail(key)
        elif choice.press(key):
            if key in (" ", "p") and not choice.paused:
                self._watch.forget_rates()
                self._look.due_s = self._count.due_s = 0.0
            self._select()
        elif key in ("q", "Q"):
            return False
        elif key in ("h", "?"):
            self._open(_Detail("help", lambda: _HELP))
        elif key == ENTER:
            self._explain()
        else:
            choice.move(key, self._found, max(1, self._room() - 1))
        return True

    def _press_in_detail(self, key: str) -> None:
        assert self._detail is not None
        page = max(1, self._window.getmaxyx()[0] - 3)
        if key in ("q", ESCAPE, BACKSPACE, ENTER):
            self._detail = None
            self._count.due_s = 0.0
        else:
            step = steps(PAGE_DOWN if key == " " else key, page, len(self._detail.text))
            self._detail.offset = max(0, self._detail.offset + step)

    def _explain(self) -> None:
        if not self._found:
            return
        one = self._found[self._choice.index]
        paths, name = self._watch.paths, one.name
        self._choice.picked = one.owner.key
        if one.owner.is_user:
            self._open(_Detail(f"explain {name}", lambda: _explanation(paths, one.owner.key)))
        else:
            self._open(_Detail(name, lambda: _place(paths, name)))

    def _open(self, detail: _Detail) -> None:
        self._detail = detail
        detail.text = "looking"
        self._draw()
        detail.look()

    # -- drawing ----------------------------------------------------------------------------------

    def _room(self) -> int:
        """Rows of users that the screen has, between what stands above them and the last line."""
        height, width = self._window.getmaxyx()
        return max(1, height - len(self._head(width)) - 1)

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        lines = self._detail_lines(height, width) if self._detail else self._table(width)
        self._window.erase()
        for number, line in enumerate([*lines[: height - 1]]):
            self._put(number, line, width)
        if height > 1:
            self._put(height - 1, [Piece(fit(self._foot(), width - 1, self._glyphs), DIM)], width)
        self._window.refresh()

    def _put(self, number: int, line: Line, width: int) -> None:
        left = width
        for text, style in line:
            if left <= 0:
                break
            try:
                self._window.addstr(number, width - left, text, self._styles[style])
            except curses.error:
                return  # the screen has become smaller since it was asked for its size
            left -= width_of(text)

    def _foot(self) -> str:
        if self._choice.typed is not None:
            return f"filter: {self._choice.typed}_"
        if self._detail is not None:
            return "escape back  up, down, space scroll"
        return "q quit  s sort  r reverse  / filter  p pause  enter explain  h help"

    def _head(self, width: int) -> list[Line]:
        """The verdict, which may take two lines, what passes the node, and the titles."""
        watch, glyphs = self._watch, self._glyphs
        said = self._trouble or headline(watch)
        level = (
            BAD if self._trouble else {OK: GOOD, DEGRADED: WARN, "": PLAIN}.get(watch.level, BAD)
        )
        first, *more = wrap(said, width, glyphs)
        said_lines = [first, " ".join(more)] if more else [first]
        lines: list[Line] = [[Piece(fit(text, width, glyphs), level)] for text in said_lines]
        shown = f"{len(self._found)} users by {self._choice.sort}"
        shown += " reversed" * self._choice.reversed
        shown += f", {' '.join(self._choice.patterns)}" if self._choice.patterns else ""
        shown = "PAUSED, " * self._choice.paused + shown
        lines.append([Piece(fit(f"{shown}; {traffic(watch)}", width, glyphs))])
        titles = head(widths(width), self._choice.sort, glyphs)
        return [*lines, [Piece(fit(titles, width, glyphs), TITLE)]]

    def _table(self, width: int) -> list[Line]:
        watch, glyphs, columns = self._watch, self._glyphs, widths(width)
        lines = self._head(width)
        has_rates = bool(watch.moment.seconds)
        for index in self._choice.window(len(self._found), self._room()):
            one = self._found[index]
            row = TableRow(one, watch.plan(one.owner), watch.rates(one.owner.minor), watch.ceil_bps)
            line = row_line(row, columns, glyphs, has_rates)
            if index == self._choice.index:
                text = "".join(piece.text for piece in line)
                line = [Piece(fit(text, width, glyphs), PICKED)]
            lines.append(line)
        if not self._found and watch.level:
            text = "no user has a class" + " that fits" * bool(self._choice.patterns)
            lines.append([Piece(fit(text, width, glyphs), DIM)])
        return lines

    def _detail_lines(self, height: int, width: int) -> list[Line]:
        assert self._detail is not None
        detail, glyphs = self._detail, self._glyphs
        text = [part for line in detail.text.splitlines() for part in wrap(line, width, glyphs)]
        detail.offset = max(0, min(detail.offset, len(text) - height + 2))
        shown = text[detail.offset :]
        head_line: Line = [Piece(fit(detail.title, width, glyphs), TITLE)]
        return [head_line, *([Piece(fit(line, width, glyphs))] for line in shown)]


def _explanation(paths: Paths, email: str) -> str:
    from .explain import read_explanation, render

    with Node(paths, prints=False) as node:
        return render(read_explanation(node, email, deep=False))


def _place(paths: Paths, name: str) -> str:
    """Who comes from the address of a restricted class."""
    from .flows import parse_place, read_place, render_place

    place = parse_place(name.rpartition(" ")[2].partition("/")[0])
    if place is None:
        return "many share this class; 'vff-qos explain IP' tells of one address"
    with Node(paths, prints=False) as node:
        return render_place(read_place(node, place, deep=False))
