"""Words that were heard before: their repetitions need neither flow nor judge.

An engine writes a line for each request of a connection.  The mark is set again each time (1 us):
that mends what other software has overwritten.
"""

from __future__ import annotations

from collections.abc import Callable

#: Twice a second's worth of new connections on a busy node; 300 bytes each.
MAX_WORDS = 10_240


class Word:
    """A plain word that gave a flow to ``email``, and the request that sets the flow's mark."""

    __slots__ = ("client", "email", "request")

    def __init__(self, email: bytes, request: bytes, client: bytes) -> None:
        self.email, self.request, self.client = email, request, client


class KnownWords:
    """By the text of the source (or the packed end, where the source of claims has that)."""

    def __init__(self) -> None:
        self.words: dict[bytes, Word] = {}
        # One string for all words of a user.
        self._emails: dict[bytes, bytes] = {}

    def learn(self, source: bytes, email: bytes, request: bytes, client: bytes) -> None:
        """The next claim of ``source`` and ``email`` means the same flow."""
        words = self.words
        if len(words) >= MAX_WORDS:
            for old in list(words)[: MAX_WORDS // 4]:
                del words[old]
            self._emails = {word.email: word.email for word in words.values()}
        words[source] = Word(self._emails.setdefault(email, email), request, client)

    def forget(self, sources: tuple[bytes, ...]) -> None:
        """The flow of these sources has ended, or is in doubt."""
        for source in sources:
            self.words.pop(source, None)

    def keep(self, holds: Callable[[Word], bool]) -> None:
        """Forget words that do not hold any more."""
        self.words = {source: word for source, word in self.words.items() if holds(word)}
