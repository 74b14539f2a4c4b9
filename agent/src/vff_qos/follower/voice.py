"""What a source's claims count for, and what they have taught so far.

A batch of claims is of one source, so that none of them needs to say of which: the agent listens to
one voice at a time.
"""

from __future__ import annotations

from ..core.claims.trust import PLAIN, TOLD
from ..core.flows.meeting import Tags
from ..core.health import report
from ..core.settings import Settings, name_prefix, other_kinds
from ..core.source_settings import SourceSettings
from .known import Word


class Voice:
    """Of one source."""

    def __init__(self, settings: Settings, source: SourceSettings) -> None:
        is_told = source.trust == report.TOLD
        #: Rank of a word that no stranger's text can have reached.
        self.plain = TOLD if is_told else PLAIN
        #: How its users' names begin, where equal names of other sources are other people; and how
        #: names of those begin.
        self.prefix = name_prefix(settings, source).encode()
        self.kinds = other_kinds(settings)
        #: Whether lines of some inbounds hold names that the engine did not check.
        self.free_text = bool(settings.free_text_ports) and not is_told
        #: Up to where such a name may have written what is read.
        self.free_text_until = 0
        #: By port whether its claims may mean a flow to there; None: any.
        self.ports: bytes | None = None
        if source.ports:
            ports = bytearray(1 << 16)
            for low, high in source.ports:
                ports[low : high + 1] = b"\1" * (high + 1 - low)
            self.ports = bytes(ports)
        #: On which of our ports its inbounds listen.
        self.tags = Tags()
        #: Its words that were heard before, and how many places their dict has used.
        self.words: dict[bytes, Word] = {}
        self.places = 0
