"""Kind of source: sing-box's log, in a file, inside a container or in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TEXT
from ..core.source_settings import Kind, Problem, SourceSettings
from .kind_container import CONTAINER
from .kind_file import PATH
from .kind_journal import UNIT, journal_of

if TYPE_CHECKING:
    from .base import Source


def _check(options: Mapping[str, str]) -> Problem | None:
    path, container, unit = (options[name] for name in ("path", "container", "journal_unit"))
    if not (path or container or unit):
        return "path", (
            "is needed, or container, or both, or journal_unit: a log on the node, in the journal "
            "of a container, inside one, or in the journal of a unit"
        )
    if unit and (path or container):
        return "journal_unit", "says where the log is, and so do path and container: leave one out"
    return None


def _origin(options: Mapping[str, str]) -> str:
    if not options["path"]:
        return journal_of(options)
    inside = f" in container {options['container']}" if options["container"] else ""
    return f"{options['path']}{inside}"


def _open(settings: SourceSettings, checkpoint: Any, replay_since_s: float | None) -> Source:
    from ..core.claims.singbox_log import SingboxScanner  # noqa: PLC0415

    options = settings.options
    if not options["path"]:
        from .journald import JournalSource, matches_of  # noqa: PLC0415

        matches = matches_of(options["journal_unit"], options["container"])
        return JournalSource(matches, checkpoint, replay_since_s, scanner=SingboxScanner)
    if options["container"]:
        from .container import ContainerSource  # noqa: PLC0415

        return ContainerSource(
            options["container"], options["path"], checkpoint, replay_since_s,
            scanner=SingboxScanner,
        )  # fmt: skip
    from .file import FileSource  # noqa: PLC0415

    return FileSource(options["path"], checkpoint, replay_since_s, scanner=SingboxScanner)


KIND = Kind(
    "singbox_log", (PATH._replace(default=""), CONTAINER, UNIT), TEXT, _origin, _open, _check
)
