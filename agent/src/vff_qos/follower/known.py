"""Words that were heard before: their repetitions need neither flow nor judge.

An engine writes a line for each request of a connection.  The mark is set again each time (1 us):
that mends what other software has overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .voice import Voice

#: Twice a second's worth of new connections on a busy node; 200 to 300 bytes each.
MAX_WORDS = 10_240

#: A plain word that gave a flow to a user: the email, the request that sets the flow's mark (empty
#: until it is repeated for the first time), and the client's packed end.  A bare tuple: thousands
#: are made in a second.
Word = tuple[bytes, bytes, bytes]
EMAIL, REQUEST, CLIENT = range(3)


class KnownWords:
    """By the text of the client's end (or the packed end, where the source of claims has that)."""

    def __init__(self, voices: Sequence[Voice]) -> None:
        self._voices = voices
        #: The one that is listened to.
        self.voice = voices[0]

    @property
    def words(self) -> dict[bytes, Word]:
        """Its words.  Who adds some calls `added`."""
        return self.voice.words

    def added(self, count: int) -> None:
        """So many words are new: the next claims of these ends, by these emails, mean the same.

        The oldest are forgotten.  Words that have gone keep their place in a dict, which would
        double before it uses them again; a new one does not.
        """
        voice = self.voice
        voice.places += count
        if voice.places > MAX_WORDS:
            words = voice.words
            newest = islice(words.items(), max(0, len(words) - MAX_WORDS // 2), None)
            voice.words = dict(newest)
            voice.places = len(voice.words)

    def forget(self, sources: tuple[bytes, ...]) -> None:
        """The flow of these ends has ended, or is in doubt."""
        for voice in self._voices:
            for source in sources:
                voice.words.pop(source, None)

    def keep(self, holds: Callable[[bytes, bytes], bool]) -> None:
        """Forget words that do not hold any more; ``holds`` is asked (email, client's end)."""
        for voice in self._voices:
            voice.words = {
                source: word
                for source, word in voice.words.items()
                if holds(word[EMAIL], word[CLIENT])
            }
            voice.places = len(voice.words)
