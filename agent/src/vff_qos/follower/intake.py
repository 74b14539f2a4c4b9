"""The sources of a follower, read in turn: one that cannot be read does not hold back the others.

Each read takes a bounded portion, and all that have something are read once in a round.  A source
that fails is opened again every ten seconds, at the place it had reached.
"""

from __future__ import annotations

import select
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ..core import events
from ..core.source_settings import SourceSettings
from ..errors import SourceError
from ..journal import Journal
from ..sources import open_source
from ..sources.base import Source
from ..state import State

#: How often one that failed is opened again.
RETRY_S = 10.0
#: In the state: by origin, type and checkpoint; and what a follower with one source had.
CHECKPOINTS, _CHECKPOINT, _REPLAY_SINCE = "checkpoints", "checkpoint", "replay_since"
#: Among the checkpoints, in their shape: origins of those in the middle of a name, perhaps.
_IN_FREE_TEXT = "in free text"
#: What the checkpoints of the older ones were.
_OLD_SHAPES: dict[str, type] = {"file": list, "container": list, "journal": dict}


class Reading:
    """One source that is wanted, and what there is of it."""

    def __init__(self, index: int, settings: SourceSettings, place: Any) -> None:
        """``place`` is its checkpoint."""
        self.index, self.settings = index, settings
        self.source: Source | None = None
        #: Why it cannot be read; empty while it can.
        self.failed = ""
        #: Its counters of before it was opened anew.
        self.counted: dict[str, Any] = {}
        self._place = place
        self._retry_at = 0.0
        self.descriptors: list[int] = []

    @property
    def waiting(self) -> str:
        """What is missing, so that nothing can come, and what to do; empty while nothing is."""
        return self.failed or (self.source.waiting if self.source is not None else "")

    @property
    def more(self) -> bool:
        """Whether there is more to read than was read."""
        return self.source is not None and self.source.more

    @property
    def checkpoint(self) -> Any:
        """Where to go on."""
        return self._place if self.source is None else self.source.checkpoint()

    def open(self, replay_since_s: float | None) -> None:
        """Raises SourceError."""
        self._retry_at = time.monotonic() + RETRY_S
        self.source = open_source(self.settings, self._place, replay_since_s)
        self.descriptors = self.source.descriptors()
        self.failed = ""

    def is_due(self) -> bool:
        """Whether to try again."""
        return self.source is None and time.monotonic() >= self._retry_at

    def give_up(self, error: SourceError) -> bool:
        """Close it until it is opened again; whether why is news."""
        if self.source is not None:
            self._place = self.source.checkpoint()
            self.source.close()
            self.counted = summed((self.counted, vars(self.source.counters)))
        self.source, self.descriptors = None, []
        self._retry_at = time.monotonic() + RETRY_S
        before, self.failed = self.failed, str(error)
        return self.failed != before


class Intake:
    """All of them."""

    def __init__(
        self, wanted: Collection[SourceSettings], state: State, journal: Journal, poll: select.epoll
    ) -> None:
        """Opens what can be opened; raises SourceError if that is none of them."""
        self._state, self._journal, self._poll = state, journal, poll
        saved, in_free_text = _saved(state, wanted)
        #: Numbers of those where a name that no engine checked may reach into what is read first.
        self.in_free_text = [
            index for index, settings in enumerate(wanted) if settings.origin in in_free_text
        ]
        self._replay_since_s = state.get_value(_REPLAY_SINCE)
        #: Whether what was written while nobody ran has been read.
        self.has_caught_up = False
        self.readings = [
            Reading(index, settings, saved.get(settings.origin))
            for index, settings in enumerate(wanted)
        ]
        for reading in self.readings:
            self._open(reading)

    @property
    def more(self) -> bool:
        """Whether there is more to read than was read."""
        return any(reading.more for reading in self.readings)

    @property
    def is_waiting(self) -> bool:
        """Whether there is more to read, or a source is to come or has not been read to its end."""
        return (
            not self.has_caught_up or self.more or any(reading.waiting for reading in self.readings)
        )

    def has_work(self, ready: Collection[int]) -> bool:
        """Whether there may be something to read, these descriptors being ready."""
        return self.more or any(
            descriptor in ready for reading in self.readings for descriptor in reading.descriptors
        )

    def read(self, ready: Collection[int]) -> Iterator[tuple[int, Source, list[Any]]]:
        """A portion of each that has something: its number, itself and its claims."""
        for reading in self.readings:
            source = reading.source
            if source is None:
                continue
            if not (source.more or any(fd in ready for fd in reading.descriptors)):
                continue
            try:
                claims = source.read()
            except SourceError as error:
                self._lose(reading, error)
                continue
            yield reading.index, source, claims
            source.settled()
        self._end_replay()

    def tick(self) -> list[int]:
        """Once a second: rotations, complaints, another try.

        Returns descriptors of those that have not been read since the start: what is there is to be
        read now.
        """
        quiet: list[int] = []
        for reading in self.readings:
            if reading.is_due():
                self._open(reading)
            if reading.source is None:
                continue
            try:
                trouble = reading.source.tick()
            except SourceError as error:
                self._lose(reading, error)
                continue
            if trouble:
                self._journal.tell(events.SOURCE, error=self._called(reading, trouble))
            if reading.source.replaying:
                # Nothing was appended since the start.
                quiet += reading.descriptors
        return quiet

    def checkpoints(self, in_free_text: Collection[int]) -> dict[str, Any]:
        """Where to go on with each, for the state; ``in_free_text`` as of the next start."""
        places: dict[str, Any] = {
            reading.settings.origin: [reading.settings.type, reading.checkpoint]
            for reading in self.readings
        }
        if in_free_text:
            origins = [self.readings[number].settings.origin for number in in_free_text]
            places[_IN_FREE_TEXT] = [_IN_FREE_TEXT, origins]
        return places

    def close(self) -> None:
        """Release descriptors."""
        for reading in self.readings:
            if reading.source is not None:
                reading.source.close()

    # -- one of them ------------------------------------------------------------------------------

    def _open(self, reading: Reading) -> None:
        had_failed = bool(reading.failed)
        try:
            reading.open(self._replay_since_s)
        except SourceError as error:
            self._lose(reading, error)
            return
        for descriptor in reading.descriptors:
            self._poll.register(descriptor, select.EPOLLIN)
        if had_failed:
            self._journal.tell(events.SOURCE_BACK, source=reading.settings.origin)

    def _lose(self, reading: Reading, error: SourceError) -> None:
        """Raises the error if there is no other source that can be read, nor still to be opened."""
        if reading.give_up(error):
            self._journal.tell(events.SOURCE, error=self._called(reading, str(error)))
        if all(one.failed for one in self.readings):
            raise error

    def _called(self, reading: Reading, trouble: str) -> str:
        """A complaint says which of several sources it is about."""
        return trouble if len(self.readings) == 1 else f"{reading.settings.name}: {trouble}"

    def _end_replay(self) -> None:
        if not self.has_caught_up and not any(
            reading.source is not None and reading.source.replaying for reading in self.readings
        ):
            self.has_caught_up = True
            self._state.set_value(_REPLAY_SINCE, None)


def summed(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counters, and counters by name, added; of anything else the last one that is there."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                total[name] = summed((total.get(name, {}), value))
            elif isinstance(value, int):
                total[name] = total.get(name, 0) + value
            elif value is not None or name not in total:
                total[name] = value
    return total


def _saved(
    state: State, wanted: Collection[SourceSettings]
) -> tuple[dict[str, Any], Collection[str]]:
    """Checkpoints by origin, as far as they are of a source of the same type; and which of them
    are in the middle of a name, perhaps."""
    types = {settings.origin: settings.type for settings in wanted}
    found = state.get_value(CHECKPOINTS)
    if found is not None:
        _kind, in_free_text = found.pop(_IN_FREE_TEXT, ("", ()))
        return {
            origin: place for origin, (kind, place) in found.items() if types.get(origin) == kind
        }, in_free_text
    # Of a version that had one source.
    old = state.get_value(_CHECKPOINT)
    for settings in wanted:
        shape = _OLD_SHAPES.get(settings.type)
        if shape is not None and isinstance(old, shape):
            return {settings.origin: old}, ()
    return {}, ()
