"""Where identities come from: streams of claims with a checkpoint.

A kind of source is a module ``kind_TYPE`` here, whose ``KIND`` says what may be set, what is wrong
with that, whether what it says can be forged, and how it is opened.  Nothing else lists the kinds.
Settings are read by every command, and on the controller, so such a module imports what reads or
listens only when it opens.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..core.source_settings import Kind, SourceSettings

if TYPE_CHECKING:
    from .base import Source

_PREFIX, _SUFFIX = "kind_", ".py"


@cache
def types() -> tuple[str, ...]:
    """The types that there are."""
    names = os.listdir(os.path.dirname(__file__))
    return tuple(
        sorted(
            name[len(_PREFIX) : -len(_SUFFIX)]
            for name in names
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
        )
    )


def kind_of(source_type: str) -> Kind:
    """The kind of a type, which must be one of `types`."""
    kind: Kind = import_module(f".{_PREFIX}{source_type}", __name__).KIND
    return kind


def open_source(source: SourceSettings, checkpoint: Any, replay_since_s: float | None) -> Source:
    """One that the settings name.  Raises SourceError."""
    return kind_of(source.type).open(source, checkpoint, replay_since_s)
