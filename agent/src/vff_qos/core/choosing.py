"""What somebody has chosen on the screen of ``top``: an order, a filter, a user, a rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .figures import SORTS, Figures, ordered

#: Names of keys that are no letters.
UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END = "up", "down", "page up", "page down", "home", "end"
ENTER, ESCAPE, BACKSPACE = "enter", "escape", "backspace"


@dataclass
class Choice:
    """What is shown, and in which order.  ``patterns``: names that it is confined to."""

    patterns: list[str] = field(default_factory=list)
    sort: str = "rate"
    reversed: bool = False
    paused: bool = False
    #: What was typed of a filter so far; None while nobody types one.
    typed: str | None = None
    #: Key of the user who was picked, and the row; without one the row stays.
    picked: str = ""
    index: int = 0
    #: The row that stands first on the screen.
    offset: int = 0

    def order(self, found: list[Figures]) -> list[Figures]:
        """All that are shown; who was picked stays so wherever they are now."""
        shown = ordered(found, self.sort)
        if self.reversed:
            shown.reverse()
        for index, one in enumerate(shown if self.picked else ()):
            if one.owner.key == self.picked:
                self.index = index
        self.index = max(0, min(self.index, len(shown) - 1))
        return shown

    def window(self, count: int, room: int) -> range:
        """Rows of ``count`` that fit on the screen, the chosen one among them."""
        self.offset = max(min(self.offset, self.index), self.index - room + 1)
        self.offset = max(0, min(self.offset, count - room))
        return range(self.offset, min(count, self.offset + room))

    def press(self, key: str) -> bool:
        """A key that chooses another order or filter; whether it was one."""
        if self.typed is not None:
            self._type(key)
        elif key in (" ", "p"):
            self.paused = not self.paused
        elif key in ("s", "S"):
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + (1 if key == "s" else -1)) % len(names)]
            self._leave()
        elif key == "r":
            self.reversed = not self.reversed
        elif key == "/":
            self.typed = ""
        else:
            return False
        return True

    def _type(self, key: str) -> None:
        """A filter, letter by letter."""
        assert self.typed is not None
        if key == ENTER:
            text, self.typed = self.typed.strip(), None
            self.patterns = [text if "*" in text else f"*{text}*"] if text else []
            self._leave()
        elif key == ESCAPE:
            self.typed = None
        elif key == BACKSPACE:
            self.typed = self.typed[:-1]
        elif len(key) == 1:
            self.typed += key

    def _leave(self) -> None:
        self.picked, self.index = "", 0

    def move(self, key: str, shown: Sequence[Figures], page: int) -> None:
        """A key that picks another user."""
        step = steps(key, page, len(shown))
        if step and shown:
            self.index = max(0, min(self.index + step, len(shown) - 1))
            self.picked = shown[self.index].owner.key


def steps(key: str, page: int, count: int) -> int:
    """How many rows a key leads down."""
    return {
        UP: -1, "k": -1, DOWN: 1, "j": 1, PAGE_UP: -page, PAGE_DOWN: page, HOME: -count, END: count,
    }.get(key, 0)  # fmt: skip
