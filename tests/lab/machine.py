"""What the machine that runs the lab can tell about itself."""

from __future__ import annotations

import os
import time


class Steal:
    """What the hypervisor gives of this machine to others, from now on: proc_stat(5).

    What is stolen is missing everywhere: a class sends nothing while its processor is away.
    """

    def __init__(self) -> None:
        self._began, self._before_s = time.monotonic(), self._stolen_s()

    @staticmethod
    def _stolen_s() -> float:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")

    def pct(self) -> float:
        """Percent of all processors until now."""
        passed_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return 100 * (self._stolen_s() - self._before_s) / passed_s
