"""Kind of source: Xray's access log inside a container."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TEXT
from ..core.source_settings import Kind, Option, Problem, SourceSettings
from .kind_file import PATH

if TYPE_CHECKING:
    from .base import Source

#: What Docker and Podman accept.
CONTAINER = Option(
    "container", re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}"), "the name of a container"
)


def _check(options: Mapping[str, str]) -> Problem | None:
    if not options["container"]:
        return "container", "is needed by a source in a container: the container's name"
    return None


def _open(settings: SourceSettings, checkpoint: Any, replay_since_s: float | None) -> Source:
    from .container import ContainerSource  # noqa: PLC0415

    options = settings.options
    return ContainerSource(options["container"], options["path"], checkpoint, replay_since_s)


KIND = Kind(
    "container",
    (PATH, CONTAINER),
    TEXT,
    lambda options: f"{options['path']} in container {options['container']}",
    _open,
    _check,
    has_emails=True,
)
