"""Where identities come from: streams of claims with a checkpoint."""

from __future__ import annotations

from typing import Any

from ..core.settings import Settings
from .base import Source
from .container import ContainerSource
from .file import FileSource
from .webhook import WebhookSource


def open_source(settings: Settings, checkpoint: Any, replay_since_s: float | None) -> Source:
    """The source that the settings name.  Raises SourceError.

    A checkpoint of another kind of source is left aside: the settings have changed.
    """
    if settings.source == "webhook":
        return WebhookSource(
            settings.webhook_listen,
            settings.webhook_group,
            settings.webhook_mode,
            settings.webhook_token,
        )
    if settings.source == "journal":
        # The systemd library is big; only this source needs it.
        from .journal import JournalSource, container_matches, unit_matches

        return JournalSource(
            unit_matches(settings.journal_unit)
            if settings.journal_unit
            else container_matches(settings.container),
            checkpoint if isinstance(checkpoint, dict) else None,
            replay_since_s,
        )
    place = checkpoint if isinstance(checkpoint, list) else None
    if settings.source == "container":
        return ContainerSource(settings.container, settings.access_log, place, replay_since_s)
    return FileSource(settings.access_log, place, replay_since_s)
