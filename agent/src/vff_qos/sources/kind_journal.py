"""Kind of source: Xray's access log in the systemd journal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TEXT
from ..core.source_settings import Kind, Option, Problem, SourceSettings
from .kind_container import CONTAINER

if TYPE_CHECKING:
    from .base import Source

UNIT = Option(
    "journal_unit",
    re.compile(r"[A-Za-z0-9:_.@\\-]{1,247}\.(?:service|scope)"),
    "a unit such as 'xray.service'",
)


def _check(options: Mapping[str, str]) -> Problem | None:
    if bool(options["journal_unit"]) == bool(options["container"]):
        return "journal_unit", (
            "a source in the journal needs either journal_unit or container: whose entries"
        )
    return None


def journal_of(options: Mapping[str, str]) -> str:
    """Whose entries are read, for people."""
    return f"the journal of {options['journal_unit'] or 'container ' + options['container']}"


def _open(settings: SourceSettings, checkpoint: Any, replay_since_s: float | None) -> Source:
    from .journald import JournalSource, matches_of  # noqa: PLC0415

    options = settings.options
    matches = matches_of(options["journal_unit"], options["container"])
    return JournalSource(matches, checkpoint, replay_since_s)


KIND = Kind("journal", (UNIT, CONTAINER), TEXT, journal_of, _open, _check, has_emails=True)
