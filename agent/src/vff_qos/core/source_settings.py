"""Sources of identities as the settings name them: what a kind is, and one that is wanted.

The kinds themselves are the modules ``kind_*`` of `vff_qos.sources`; nothing here opens anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from .health.report import TEXT

if TYPE_CHECKING:
    from ..sources.base import Source

ACCESS_LOG = "/var/log/xray/access.log"
#: Closed ranges of ports.
PortRanges = tuple[tuple[int, int], ...]

#: How a source may be called: its users may bear the name, as ``hysteria:alice``.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
#: These stand for other things in names of users.
TAKEN_NAMES = ("service", "network", "xray")


class Option(NamedTuple):
    """What may be said of a source beside its type, name and ports: text of a grammar."""

    name: str
    grammar: re.Pattern[str]
    #: What it must be, for people: "the name of a container".
    what: str
    default: str = ""
    #: Never shown.
    is_secret: bool = False


#: A wrong option and what is wrong with it.
Problem = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """One kind of source.  A new one is a new module ``kind_TYPE`` with this as its ``KIND``."""

    type: str
    options: tuple[Option, ...]
    #: Whether a user of the engine can forge what it says: `TEXT` (they can) or `TOLD`.
    trust: str
    #: What it reads, or where it listens, for people; no two sources of a node have the same.
    origin: Callable[[Mapping[str, str]], str]
    #: Opens one, at a checkpoint that it gave (None: there is none) and, after the kill switch,
    #: with what was said since some time (seconds since the epoch).  Raises SourceError.
    open: Callable[[SourceSettings, Any, float | None], Source]
    #: Looks at all options together; None if nothing is wrong.
    check: Callable[[Mapping[str, str]], Problem | None] = lambda _options: None
    #: Whether its names are those of Xray's users: such an email is the user's name as it is.
    has_emails: bool = False


@dataclass(frozen=True)
class SourceSettings:
    """One source that is wanted."""

    type: str = "file"
    #: What it is called in `status`; unique.
    name: str = "file"
    #: Only flows to these ports of ours can be what it speaks of; empty: to any service port.
    ports: PortRanges = ()
    options: Mapping[str, str] = field(default_factory=lambda: {"path": ACCESS_LOG})
    origin: str = ACCESS_LOG
    trust: str = TEXT
    has_emails: bool = True


def read_options(
    kind: Kind, given: Mapping[str, Any], fail: Callable[[str, str], ConfigError]
) -> dict[str, str]:
    """All options of a source of this kind; ``fail`` makes the error about one of them."""
    found = {}
    for option in kind.options:
        value = given.get(option.name, "")
        if value != "" and (not isinstance(value, str) or not option.grammar.fullmatch(value)):
            shown = "the value" if option.is_secret else repr(value)
            raise fail(option.name, f"{shown} is not {option.what}")
        found[option.name] = value or option.default
    problem = kind.check(found)
    if problem is not None:
        raise fail(*problem)
    return found


def first_twice(values: Iterable[str]) -> tuple[int, int] | None:
    """Places of the first two equal ones."""
    places: dict[str, int] = {}
    for place, value in enumerate(values):
        if value in places:
            return places[value], place
        places[value] = place
    return None


def covers(ranges: PortRanges, others: PortRanges) -> bool:
    """Whether all of ``others`` are among the sorted ``ranges``; none of them stand for all."""
    return not ranges or all(
        any(low <= first and last <= high for low, high in ranges) for first, last in others
    )


def sources_of(sources: Iterable[SourceSettings], *types: str) -> list[SourceSettings]:
    """Those of some types."""
    return [source for source in sources if source.type in types]
