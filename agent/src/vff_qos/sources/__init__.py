"""Where identities come from: streams of claims with a checkpoint."""

from __future__ import annotations

from typing import Any

from ..core.settings import Settings
from .base import Source


def open_source(settings: Settings, checkpoint: Any, replay_since_s: float | None) -> Source:
    """The source that the settings name.  Raises SourceError.

    A checkpoint of another kind of source is left aside: the settings have changed.
    """
    # What a source needs is memory that the others save.
    if settings.source == "webhook":
        from .webhook import WebhookSource

        return WebhookSource(
            settings.webhook_listen,
            settings.webhook_group,
            token=settings.webhook_token,
        )
    if settings.source == "journal":
        from .journald import JournalSource, container_matches, unit_matches

        return JournalSource(
            unit_matches(settings.journal_unit)
            if settings.journal_unit
            else container_matches(settings.container),
            checkpoint if isinstance(checkpoint, dict) else None,
            replay_since_s,
        )
    place = checkpoint if isinstance(checkpoint, list) else None
    if settings.source == "container":
        from .container import ContainerSource

        return ContainerSource(settings.container, settings.access_log, place, replay_since_s)
    from .file import FileSource

    return FileSource(settings.access_log, place, replay_since_s)
