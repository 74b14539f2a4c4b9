"""Words that were heard before: their repetitions need neither flow nor judge.

An engine writes a line for each request of a connection.  The mark is set again each time (1 us):
that mends what other software has overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        self.words: dict[bytes, Word] = {}

    def learn(self, learned: Iterable[tuple[bytes, Word]]) -> None:
        """The next claims of these sources, by these emails, mean the same flows."""
        words = self.words
        words.update(learned)
        if len(words) > MAX_WORDS:
            for old in list(islice(words, len(words) - MAX_WORDS * 3 // 4)):
                del words[old]

    def forget(self, sources: tuple[bytes, ...]) -> None:
        """The flow of these sources has ended, or is in doubt."""
        for source in sources:
            self.words.pop(source, None)

    def keep(self, holds: Callable[[bytes, bytes], bool]) -> None:
        """Forget words that do not hold any more; ``holds`` is asked (email, client's end)."""
        self.words = {
            source: word for source, word in self.words.items() if holds(word[EMAIL], word[CLIENT])
        }
