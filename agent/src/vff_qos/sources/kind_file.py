"""Kind of source: Xray's access log as a file of the node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..core.health.report import TEXT
from ..core.source_settings import ACCESS_LOG, Kind, Option, SourceSettings

if TYPE_CHECKING:
    from .base import Source

#: Of the log, here and in a container.
PATH = Option("path", re.compile(r"/[^\0\n]{1,4095}"), "an absolute path", ACCESS_LOG)


def _open(settings: SourceSettings, checkpoint: Any, replay_since_s: float | None) -> Source:
    from .file import FileSource  # noqa: PLC0415

    return FileSource(settings.options["path"], checkpoint, replay_since_s)


KIND = Kind("file", (PATH,), TEXT, lambda options: options["path"], _open, has_emails=True)
