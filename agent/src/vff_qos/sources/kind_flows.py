"""Kind of source: the socket where programs of this host post whose a flow is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.health.report import TOLD
from ..core.source_settings import Kind, Option, Problem, SourceSettings
from .kind_webhook import GROUP

if TYPE_CHECKING:
    from .base import Source

_LISTEN = Option("listen", re.compile(r"unix:/[!-~]{1,106}"), "'unix:/absolute/path'")


def _check(options: Mapping[str, str]) -> Problem | None:
    if not options["listen"]:
        return "listen", "is needed: 'unix:/run/vff-qos-flows.sock'"
    return None


def _open(settings: SourceSettings, _checkpoint: Any, _replay_since_s: float | None) -> Source:
    from .told_flows import FlowsSource  # noqa: PLC0415

    return FlowsSource(settings.options["listen"], settings.options["group"])


KIND = Kind(
    "flows",
    (_LISTEN, GROUP),
    TOLD,
    lambda options: f"what is posted to {options['listen']}",
    _open,
    _check,
)
