"""Who is kept out from where: a user's address whose connections end, until a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

#: So many may stand at a time, the latest.
MOST = 1_000


class Barred(NamedTuple):
    """One order: ``place`` is an address as `core.claims.trust.address_key` gives it, in
    hexadecimal; ``until`` is in seconds since the epoch, None for "until reset"."""

    email: str
    place: str
    until: float | None
    who: str

    @property
    def packed(self) -> bytes:
        """The place."""
        return bytes.fromhex(self.place)


def read_barred(value: Any, now_s: float) -> list[Barred]:
    """Those that hold at the moment, of what the state has."""
    found = [Barred(*one) for one in value or ()]
    return [one for one in found if one.until is None or one.until > now_s]


def with_one(known: Iterable[Barred], new: Barred) -> list[Barred]:
    """All with a new one, which takes the place of an earlier one of the same user and place."""
    name = new.email, new.place
    return [*(one for one in known if (one.email, one.place) != name), new][-MOST:]
