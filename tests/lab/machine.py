"""What the machine that runs the lab can tell about itself."""

from __future__ import annotations

import os
import time

_IDLE, _STOLEN = 4, 8  # fields of the first line of proc_stat(5)
#: With more stolen or less idle than this, what is measured is this machine.
MAX_STOLEN_PCT, MIN_IDLE_PCT = 2.0, 10.0


class Load:
    """Who has this machine's processors, from now on; in percent of all of them.

    What the hypervisor gives to others (`stolen_pct`) is missing everywhere: a class sends nothing
    while its processor is away.
    """

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), self._fields()

    def stolen_pct(self) -> float:
        """What others had until now."""
        return self._pct(_STOLEN)

    def idle_pct(self) -> float:
        """What nobody wanted until now."""
        return self._pct(_IDLE)

    def shares(self) -> dict[str, float]:
        """Both, for people."""
        return {
            "stolen_pct": round(self.stolen_pct(), 1),
            "idle_pct": round(self.idle_pct(), 1),
        }

    def starved(self) -> bool:
        """Whether what was measured until now tells of this machine rather than of the node."""
        return self.stolen_pct() >= MAX_STOLEN_PCT or self.idle_pct() <= MIN_IDLE_PCT

    def _pct(self, field: int) -> float:
        passed_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        ticks = self._fields()[field] - self._before[field]
        return 100 * ticks / os.sysconf("SC_CLK_TCK") / passed_s

    @staticmethod
    def _fields() -> list[int]:
        with open("/proc/stat", encoding="ascii") as file:
            return [0, *map(int, file.readline().split()[1:])]
