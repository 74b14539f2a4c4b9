"""Whose flow is it?  The rules of trust, as one function of what is known.

Proxy logs carry text that strangers chose: a forged line is well formed and may even come before
the true one.  So neither "the first line wins" nor "the flow exists" is enough.  Each word on a
flow has a rank:

- where the kernel itself says by port or address whose a flow is (core/identities.py), that is
  *fixed*, and no word counts;
- what the source of claims was *told* (a webhook) cannot be forged;
- a *plain* line stands outside the reach of strangers' text;
- a *weak* word is plain, but may mean another flow: of the same client's end, or an earlier one;
- a *vouched* line is within reach of a stranger's text, but the same user had a plain one from the
  same address within the last hour, and the stranger does not come from there;
- where the stranger does come from there, or from nobody knows where, it is a *hint*: it takes a
  flow that is nobody's, and stands until any other word names somebody else;
- all others are *doubted*.

A higher rank beats a lower one and ends a restriction that a lower one led to.  Equal words of two
users are a conflict, except weak ones: the later one is the more likely.  What is restricted goes
into a class that the doubted flows of its address share.  The kernel's own mark is the memory of
what was decided: it lives and dies with the flow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from mmap import mmap

from ..flows.record import FOREIGN, MINOR, RESTRICTED, holder, rank

#: Ranks of words, from the least to the most.
DOUBTED, HINTED, VOUCHED, WEAK, PLAIN, TOLD, FIXED = range(7)
#: The mark was there when the agent came: it is right unless a plain word says otherwise.
ADOPTED = WEAK

#: How long a plain word vouches for the same user and address.
VOUCH_S = 3_600
#: Users and addresses that are vouched for, in each of two generations, and of one user at most:
#: whoever has many addresses (an IPv6 prefix) must not have those of others forgotten.
_VOUCHES, _VOUCHES_EACH = 32_768, 64

#: How long the packed end of a client with an IPv4 address is.
_IPV4_END = 6


class Verdict(Enum):
    """What to do with a flow."""

    GIVE = "give it to the claiming user"
    KEEP = "leave its mark as it is"
    RESTRICT = "into a restricted class of its address, until a better word comes"
    CONFLICT = "the same, because equal words name two users"
    FOREIGN = "the mark is somebody else's: never touch it"


def judge(record: int, claimed: int | None, word_rank: int) -> Verdict:
    """The verdict on one word on one live flow.

    ``record`` is what is known of the flow, ``claimed`` the minor of the user that the word names
    (0: the user has none yet; None: it names nobody, because it does not parse to its end).
    """
    if record & FOREIGN:
        return Verdict.FOREIGN
    # What was given away in advance is nobody's until a word comes.
    held = holder(record)
    if claimed is None:
        return Verdict.KEEP if held else Verdict.RESTRICT
    if not held:
        return Verdict.GIVE if word_rank > DOUBTED else Verdict.RESTRICT
    if word_rank > max(rank(record), HINTED):
        return Verdict.GIVE
    if record & RESTRICTED:
        return Verdict.RESTRICT
    if held == claimed:
        return Verdict.KEEP
    if rank(record) == HINTED:
        return Verdict.RESTRICT
    if word_rank < rank(record):
        return Verdict.KEEP
    return Verdict.GIVE if word_rank == WEAK else Verdict.CONFLICT


def address_key(address: bytes) -> bytes:
    """What counts as one source: an IPv4 address, or an IPv6 /64 (one customer's usual net)."""
    return address if len(address) == 4 else address[:8]


class Vouchers:
    """Who had a plain word from where, and when.  Times in seconds that never go back.

    A word vouches for words of its own source alone: a user may be joined of identities of several
    (`core.people`), and one that nobody can forge must lend nothing to one that somebody can.
    """

    def __init__(self) -> None:
        #: The number of the source that is listened to, 15 at most.
        self.speaker = 0
        # {address, source and minor: time}; the older half is forgotten when the younger one is
        # full, or so old that its oldest time says nothing any more.
        self._young: dict[int, float] = {}
        self._old: dict[int, float] = {}
        # How many of the younger half are each minor's, and when that half began.
        self._counts, self._began_s = bytearray(1 << 16), 0.0
        # The places of those who have as many as one may have, in the order in which they came.
        self._many: dict[int, deque[int]] = {}
        # Since when a minor has been another user's.
        self._since: dict[int, float] = {}
        #: When each minor's user was given a flow by such a word last, in whole seconds; 0: never.
        # Mapped, so that minors that nobody has take no memory.
        self.named: memoryview[int] = memoryview(mmap(-1, 4 << 16)).cast("I")
        #: Whether these times are others than when somebody made this False.
        self.are_news = True

    def saw(self, flows: Iterable[tuple[bytes, int]], now_s: float) -> None:
        """Plain words gave each flow (client's packed end, record) to the user of its minor."""
        young, named, second, number = self._young, self.named, int(now_s), int.from_bytes
        low, counts = self.speaker << 17 | 1, self._counts
        self.are_news = True
        for client, record in flows:
            minor = record & MINOR
            named[minor] = second
            if len(client) == _IPV4_END:
                # As `_place` does: thousands come at once.
                place = number(client[:4], "big") << 21 | minor << 1 | low
            else:
                place = _place(client[:-2], minor, self.speaker)
            if place not in young:
                if len(young) >= _VOUCHES or now_s - self._began_s >= VOUCH_S:
                    self._old, self._young, self._began_s = young, {}, now_s
                    self._counts, self._many = bytearray(1 << 16), {}
                    young, counts = self._young, self._counts
                if counts[minor] >= _VOUCHES_EACH:
                    self._leave_oldest(minor, place)
                else:
                    counts[minor] += 1
            young[place] = now_s

    def _leave_oldest(self, minor: int, place: int) -> None:
        """A user's new place comes for the first of as many as one may have."""
        places = self._many.get(minor)
        if places is None:
            # Seldom: all are looked through once.
            mine = (there for there in self._young if there >> 1 & MINOR == minor)
            places = self._many[minor] = deque(mine)
        del self._young[places.popleft()]
        places.append(place)

    def vouch(self, minor: int, address: bytes, now_s: float) -> bool:
        """Whether a plain word vouches for this user at this address."""
        place = _place(address, minor, self.speaker)
        seen = self._young.get(place, self._old.get(place))
        if seen is None or now_s - seen >= VOUCH_S:
            return False
        return seen >= self._since.get(minor, seen)

    def passed_on(self, minors: list[int], now_s: float) -> None:
        """The minors have other owners, for whom nothing vouches yet.  Empties the list."""
        for minor in minors:
            # Most minors are passed on but once, from nobody: no word could vouch for that.
            if self.named[minor]:
                self._since[minor] = now_s
                self.named[minor] = 0
                self.are_news = True
        minors.clear()


def _place(address: bytes, minor: int, speaker: int) -> int:
    """An address, a source and a minor as one number: 32 bytes of memory where text takes 48."""
    if len(address) == 4:
        return int.from_bytes(address, "big") << 21 | speaker << 17 | minor << 1 | 1
    return int.from_bytes(address[:8], "big") << 21 | speaker << 17 | minor << 1
