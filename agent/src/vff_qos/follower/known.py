"""Words that were heard before: their repetitions need neither flow nor judge.

An engine writes a line for each request of a connection.  The mark is set again each time (1 us):
that mends what other software has overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

#: Twice a second's worth of new connections on a busy node; 300 bytes each.
MAX_WORDS = 10_240

#: A plain word that gave a flow to a user: the email, the request that sets the flow's mark, and
#: the client's packed end.  A bare tuple: thousands are made in a second.
Word = tuple[bytes, bytes, bytes]
EMAIL, REQUEST, CLIENT = range(3)


class KnownWords:
    """By the text of the source (or the packed end, where the source of claims has that)."""

    def __init__(self) -> None:
        #: Who adds words calls `added`.
        self.words: dict[bytes, Word] = {}
        self._places = 0

    def added(self, count: int) -> None:
        """So many words are new: the next claims of these sources, by these emails, mean the same.

        The oldest are forgotten.  Words that have gone keep their place in a dict, which would
        double before it uses them again; a new one does not.
        """
        self._places += count
        if self._places > MAX_WORDS:
            newest = islice(self.words.items(), max(0, len(self.words) - MAX_WORDS * 3 // 4), None)
            self.words = dict(newest)
            self._places = len(self.words)

    def forget(self, sources: tuple[bytes, ...]) -> None:
        """The flow of these sources has ended, or is in doubt."""
        for source in sources:
            self.words.pop(source, None)

    def keep(self, holds: Callable[[bytes, bytes], bool]) -> None:
        """Forget words that do not hold any more; ``holds`` is asked (email, client's end)."""
        self.words = {
            source: word for source, word in self.words.items() if holds(word[EMAIL], word[CLIENT])
        }
        self._places = len(self.words)
