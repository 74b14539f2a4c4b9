"""How often something costly is done: seldom enough for the share of a core that it may take."""

from __future__ import annotations

import math
from typing import NamedTuple


class Pace(NamedTuple):
    """Within these bounds it takes at most ``share`` of a core (1.0: all of one)."""

    share: float
    least_s: float
    most_s: float = math.inf

    def gap_s(self, cost_s: float) -> float:
        """How long to wait after it took so much of a core's time, in seconds."""
        return min(max(self.least_s, cost_s / self.share), self.most_s)
