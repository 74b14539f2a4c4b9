"""Where identities come from: streams of claims with a checkpoint."""

from __future__ import annotations

from typing import Any

from ..core.settings import Settings
from .base import Source
from .file import FileSource


def open_source(settings: Settings, checkpoint: Any, replay_since_s: float | None) -> Source:
    """The source that the settings name.  Raises SourceError."""
    return FileSource(settings.access_log, checkpoint, replay_since_s)
