"""Which flow a claim means.

A claim names the client's end.  Mostly one flow comes from there.  Where several do (one port to
two of our ports or addresses, TCP and UDP, two customers behind one translated address), what is
known of our end decides: by the claim itself, by its inbound's tag, by who has which already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from ..claims.accesslog import inbound_tag
from ..claims.trust import WEAK
from .record import (
    END,
    MINOR,
    PORT_SHIFT,
    PROVISIONAL,
    RESTRICTED,
    REUSED,
    UDP,
    VAGUE,
    birth_ms,
    goes_to,
    holder,
    port,
    rank,
)

#: A tag with more ends than this listens on a range, and says nothing about the end.
_MAX_ENDS = 16
#: Tags come out of text: a stranger must not fill our memory with them.
_MAX_TAGS = 1_024

#: Protocol and port of ours, as bits of a record.
_END = UDP | 0xFFFF << PORT_SHIFT


class Tags:
    """What plain claims have shown: on which of our ports the inbound of a tag listens."""

    def __init__(self, direct: set[int] | None = None) -> None:
        """``direct`` is shared by all sources of a node."""
        self._ends: dict[bytes, frozenset[int]] = {}
        #: Ends of ours (as bits of a record) that claims named and their flows went to: where these
        #: go, no DNAT stands before.
        self.direct: set[int] = set() if direct is None else direct
        # The text in a line's brackets to the tag at its beginning.
        self._tags: dict[bytes, bytes] = {}

    def learn(self, tag: bytes, record: int) -> None:
        """A plain claim with this tag meant this flow and no other."""
        end = record & _END
        known = self._ends.get(tag)
        if known is None:
            if len(self._ends) >= _MAX_TAGS:
                self._ends.clear()
            self._ends[tag] = frozenset((end,))
        elif end not in known and len(known) <= _MAX_ENDS:
            self._ends[tag] = known | {end}

    def tag(self, detour: bytes) -> bytes:
        """The inbound's tag in what a line has in brackets."""
        tag = self._tags.get(detour)
        if tag is None:
            if len(self._tags) >= _MAX_TAGS:
                self._tags.clear()
            tag = self._tags[detour] = inbound_tag(detour)
        return tag

    def fits(self, detour: bytes, record: int) -> bool:
        """Whether the flow goes where flows with this tag go, as far as is known.

        The first such flow teaches it, unless others are known to go there.
        """
        tag = self.tag(detour)
        ends = self._ends.get(tag)
        if ends is None:
            if self.is_new_at(tag, record):
                return False
            self.learn(tag, record)
            return True
        return record & _END in ends or len(ends) > _MAX_ENDS

    def ends(self, tag: bytes) -> frozenset[int]:
        """Ends of the tag's inbound; empty if they are unknown or too many to tell."""
        known = self._ends.get(tag)
        return known if known is not None and len(known) <= _MAX_ENDS else frozenset()

    def is_new_at(self, tag: bytes, record: int) -> bool:
        """Whether a tag was never seen, and the flow goes to an inbound of another one.

        Inbounds share an end where one falls back to another; or this one listens at a port that
        nobody told us of.
        """
        return tag != b"" and tag not in self._ends and self.knows_elsewhere(tag, record)

    def knows_elsewhere(self, tag: bytes, record: int) -> bool:
        """Whether the flow goes to an inbound of another tag."""
        end = record & _END
        return any(end in ends for other, ends in self._ends.items() if other != tag)


class Fit(Enum):
    """Whether flows go to the end of ours that a claim names."""

    SURE = "to exactly that one, or the claim names none"
    PERHAPS = "to another one, from where DNAT may lead there"
    ELSEWHERE = "to one that claims have named by itself"


class Local(NamedTuple):
    """Our end as a claim names it: port, and the mirror's number of the address (-1: unknown)."""

    port: int
    address: int


class Written(NamedTuple):
    """When a claim was made: between these, in ms since the mirror began."""

    since_ms: float
    until_ms: float


class Meeting(NamedTuple):
    """The flow that a claim means, and whether it can mean no other."""

    record: int
    certain: bool


def meet(
    records: Sequence[int],
    claimed: int,
    tag: bytes,
    local: Local | None,
    tags: Tags,
    written: Callable[[], Written],
    earliest_ms: Callable[[int], int] = birth_ms,
    is_late: bool = False,
    has_ended: bool = False,
) -> Meeting | None:
    """The one of a client end's ``records`` that a claim of the user ``claimed`` (0: new) means.

    ``local`` is our end if the claim names it, ``written`` tells when it was made (asked for only
    where it matters), ``earliest_ms`` before when a flow was surely not born; ``is_late``: it may
    be so old that any tuple may have been another flow's; ``has_ended``: another flow of this end
    has ended just now.  None: the flow it means has gone.
    """
    at_end, fit = at_local(records, claimed, local, tags)
    found = _of_tag(at_end, claimed, tag, tags)
    certain = len(found) == 1 and fit is not Fit.ELSEWHERE
    if has_ended and fit is not Fit.SURE:
        certain = False
    if certain and local is None and tags.is_new_at(tag, found[0]):
        certain = False
    elif certain and local is None and _is_elsewheres(found[0], tag, tags):
        # Its inbound listens elsewhere, as far as is known.
        held = _held(found[0])
        if held and held != claimed:
            return None
        # A weak word does not become certain by being said twice.
        certain = held == claimed != 0 and rank(found[0]) > WEAK
    if is_late or any(record & REUSED for record in found):
        time = written()
        alive = [r for r in found if r & VAGUE or earliest_ms(r) <= time.until_ms]
        certain = (
            certain
            and len(alive) == 1
            and not alive[0] & VAGUE
            and (not (is_late or alive[0] & REUSED) or birth_ms(alive[0]) <= time.since_ms)
        )
        found = alive
    if not found:
        return None
    if len(found) == 1:
        return Meeting(found[0], certain)
    return Meeting(min(found, key=lambda record: _order(record, claimed)), False)


def at_local(
    records: Sequence[int], claimed: int, local: Local | None, tags: Tags
) -> tuple[Sequence[int], Fit]:
    """Those that may go to the end that a claim names, and whether that is surely theirs.

    Behind DNAT (Docker) the engine's own end is not the one that the client has asked for.
    """
    if local is None:
        return records, Fit.SURE
    exact = [record for record in records if goes_to(record, local.port, local.address)]
    if exact:
        tags.direct.update(record & END for record in exact)
        return exact, Fit.SURE
    redirected = [record for record in records if record & END not in tags.direct]
    at_port = [record for record in redirected or records if port(record) == local.port]
    if not redirected:
        return at_port or records, Fit.ELSEWHERE
    if not at_port:
        return redirected, Fit.PERHAPS
    others = [record for record in redirected if not _held(record)]
    if others and all(_held(record) == claimed != 0 for record in at_port):
        # They have their word; DNAT may lead to the same port from another one, too.
        return others, Fit.ELSEWHERE
    return at_port, Fit.PERHAPS


def _of_tag(records: Sequence[int], claimed: int, tag: bytes, tags: Tags) -> Sequence[int]:
    """Those that go where the tag's inbound listens; all if that is not known."""
    if len(records) > 1:
        ends = tags.ends(tag)
        known = [record for record in records if record & _END in ends]
        if all(_held(record) == claimed != 0 for record in known):
            # They have their word; this may be that of a flow to where the tag was not seen yet.
            known += [
                record
                for record in records
                if record not in known
                and not (known and _held(record))
                and not tags.knows_elsewhere(tag, record)
            ]
        records = known or records
    return records


def _held(record: int) -> int:
    """Whose a flow is: not what was given in advance, nor what is in doubt."""
    return 0 if record & (PROVISIONAL | RESTRICTED) else record & MINOR


def _is_elsewheres(record: int, tag: bytes, tags: Tags) -> bool:
    ends = tags.ends(tag)
    return bool(ends) and record & _END not in ends


def _order(record: int, claimed: int) -> tuple[int, int]:
    """Nobody's flows first, the oldest before: each of a client's flows has its own line."""
    held = holder(record)
    if not held:
        order = 0
    elif held == claimed:
        order = 1
    else:
        order = 2 if record & RESTRICTED else 3
    return order, birth_ms(record)
