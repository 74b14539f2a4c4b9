"""What a source's claims count for, and what they have taught so far.

A batch of claims is of one source, so that none of them needs to say of which: the agent listens to
one voice at a time.
"""

from __future__ import annotations

from ..core.claims.accesslog import FREE_TEXT_BYTES, STREAM_POSITIONS
from ..core.claims.trust import PLAIN, TOLD
from ..core.flows.meeting import Tags
from ..core.health import report
from ..core.settings import Settings, name_prefix, other_kinds
from ..core.source_settings import SourceSettings
from .known import Word

#: Of so many streams it is known where such a name may stand: files and processes come and go.
_MAX_STREAMS = 256


class Voice:
    """Of one source."""

    def __init__(self, settings: Settings, source: SourceSettings, direct: set[int]) -> None:
        """``direct`` as of `Tags`."""
        is_told = source.trust == report.TOLD
        #: Rank of a word that no stranger's text can have reached.
        self.plain = TOLD if is_told else PLAIN
        #: How its users' names begin, where equal names of other sources are other people; and how
        #: names of those begin.
        self.prefix = name_prefix(settings, source).encode()
        self.kinds = other_kinds(settings)
        #: Whether lines of some inbounds hold names that the engine did not check.
        self.free_text = bool(settings.free_text_ports) and not is_told
        # By stream: up to which position such a name may have written, and the last one judged.
        self._free: dict[int, tuple[int, int]] = {}
        self._begins_within = False
        #: By port whether its claims may mean a flow to there; None: any.
        self.ports: bytes | None = None
        if source.ports:
            ports = bytearray(1 << 16)
            for low, high in source.ports:
                ports[low : high + 1] = b"\1" * (high + 1 - low)
            self.ports = bytes(ports)
        #: On which of our ports its inbounds listen.
        self.tags = Tags(direct)
        #: Its words that were heard before, and how many places their dict has used.
        self.words: dict[bytes, Word] = {}
        self.places = 0

    @property
    def is_in_free_text(self) -> bool:
        """Whether such a name may reach into what comes next; to be kept over a restart."""
        return self._begins_within or any(last < until for until, last in self._free.values())

    def begin_within(self) -> None:
        """What is read first may be of such a name."""
        self._begins_within = self.free_text

    def taint_after(self, position: int) -> None:
        """The line there may hold a name that the engine did not check."""
        stream, within = divmod(position, STREAM_POSITIONS)
        _until, last = self._free.pop(stream, (0, 0))
        self._keep(stream, within + FREE_TEXT_BYTES, max(within, last))

    def is_after_free_text(self, position: int) -> bool:
        """Whether such a name may reach to there."""
        if not self.free_text:
            return False
        stream, within = divmod(position, STREAM_POSITIONS)
        known = self._free.get(stream)
        if known is None:
            if within >= FREE_TEXT_BYTES:
                self._begins_within = False
                return False
            # Whoever splits a log at lines may have split such a name.
            if self.is_in_free_text:
                self._keep(stream, FREE_TEXT_BYTES - 1, within)
                return True
            return False
        until, last = known
        if within > last:
            self._free[stream] = until, within
        if within >= until:
            self._begins_within = False
        # What stands before has been judged before, or is the line itself.
        return until - FREE_TEXT_BYTES < within < until

    def _keep(self, stream: int, until: int, last: int) -> None:
        """Remember a stream, in the place of one that is through with it if there is such a one."""
        if len(self._free) >= _MAX_STREAMS:
            through = (
                s for s, (its_until, its_last) in self._free.items() if its_last >= its_until
            )
            del self._free[next(through, next(iter(self._free)))]
        self._free[stream] = until, last
