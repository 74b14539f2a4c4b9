"""Healing: hears what others break and has ``bootstrap`` put it right, within a second.

The repair runs in a process of its own: it is the same code as at boot, and a fault of libnftables
must not take the agent along.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from dataclasses import replace

from ..config import Paths
from ..core import events
from ..core.health.report import RepairHealth
from ..core.settings import Settings
from ..errors import KernelRefused, Refused
from ..journal import Journal
from ..kernel.devices import wan_link
from ..kernel.packed.links import is_link_up
from ..kernel.packed.monitor import Monitor
from ..kernel.packed.tc import Tc

#: How long notifications are gathered: one break leads to several.
_SETTLE_S = 0.05
#: Repairs that follow each other within this time keep ever longer distances, up to a limit: we
#: do not fight with somebody who undoes them.
_CALM_S = 10.0
_MAX_GAP_S = 5.0
#: How often a repair runs although no notification asked for it: rarely, because the start of a
#: child costs 0.15 s of CPU.
_RECONCILE_S = 300.0
#: What broke while no agent ran is nobody's news: it is looked for so long after the start.
_FIRST_CHECK_S = 2.0
_MAX_BACKOFF_S = 60.0
#: A repair takes some tenths of a second; one that hangs must not be the last.
_MAX_REPAIR_S = 60.0


def repair_command(paths: Paths) -> list[str]:
    """What repairs: ``vff-qos bootstrap`` with our files, which does not end a suspension."""
    command = [sys.executable, "-m", "vff_qos", "bootstrap", "--repair"]
    for name, value in paths._asdict().items():
        command += [f"--{name.replace('_', '-')}", value]
    return command


class Healer:
    """Notices, repairs, verifies.  ``now_s`` is time.monotonic()."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        journal: Journal,
        own_ports: tuple[int, ...],
        devices: tuple[int, int],
    ) -> None:
        """``own_ports``: netlink ports whose changes are ours; ``devices``: indexes of IFB, WAN."""
        self.repairs = 0
        self.health = RepairHealth()
        with open("/proc/self/comm", encoding="utf-8", errors="backslashreplace") as file:
            self._own_name = file.read().strip()
        self._command = repair_command(paths)
        self._settings, self._journal = settings, journal
        self._monitor = Monitor(own_ports, {settings.ifb, settings.wan})
        self._poll = select.epoll()
        for descriptor in self._monitor.descriptors():
            self._poll.register(descriptor, select.EPOLLIN)
        self.set_devices(devices)
        self._child: subprocess.Popen[str] | None = None
        self._child_fd = -1
        self._repairs_pid = -1  # also of one that has ended: its changes are heard later
        self._due: float | None = None
        # Whether something happened since the last repair was started, and before that.
        self._cause = self._repairs_cause = False
        self._last_start = -_CALM_S
        self._gap_s = _SETTLE_S
        self._backoff_s = 1.0
        self._next_check = time.monotonic() + _RECONCILE_S

    def fileno(self) -> int:
        """Readable when something was heard or a repair has ended."""
        return self._poll.fileno()

    def set_devices(self, devices: tuple[int, int]) -> None:
        """Indexes of (IFB, WAN) after a repair."""
        self._devices = devices
        self._monitor.watch(devices)

    def check_soon(self) -> None:
        """Repair what was broken while nobody listened."""
        self._next_check = time.monotonic() + _FIRST_CHECK_S

    def listen(self, now_s: float) -> bool:
        """Read what was heard; returns whether our addresses have changed."""
        heard = self._monitor.listen()
        if heard.nft_author is not None and not self._is_ours(*heard.nft_author):
            pid, name = heard.nft_author
            self.health = replace(self.health, culprit=name, culprit_pid=pid)
        if heard.ifb_lost:
            self._let_uploads_pass()
        if heard.kernel or (heard.routes and self._wan_moved()):
            self.want(now_s)
        return heard.addresses

    def _is_ours(self, pid: int, name: str) -> bool:
        """Whether a process is a repair, which is called as the interpreter is, or a command."""
        return pid == self._repairs_pid or name == self._own_name

    def due(self) -> float | None:
        """When ``turn`` has something to do; None: not before the next message."""
        if self._child is not None:
            return None
        return self._next_check if self._due is None else self._due

    def turn(self, now_s: float, wanted: bool) -> list[str] | None:
        """Start a repair that is due (``wanted``: the kernel refused us something).

        Returns the changes of one that has just ended well; None if none has, or if it was a
        matter of routine and found nothing: then users' classes are as they were, too.
        """
        if wanted:
            # Also while one is under way: it may be past the place.
            self.want(now_s)
        changes = None
        if self._child is not None:
            if self._child.poll() is None:
                if now_s >= self._last_start + _MAX_REPAIR_S:
                    self._child.kill()
                return None
            changes = self._ended(self._child, now_s)
        if now_s >= self._next_check and self._due is None:
            self._due = now_s
        if self._due is not None and now_s >= self._due:
            self._start(now_s)
        return changes

    def want(self, now_s: float) -> None:
        """There is a cause for a repair."""
        self._cause = True
        if now_s - self._last_start >= _CALM_S:
            self._gap_s = _SETTLE_S
        due = now_s + self._gap_s
        self._due = due if self._due is None else min(due, self._due)

    def _start(self, now_s: float) -> None:
        self._due = None
        self._repairs_cause, self._cause = self._cause, False
        self._next_check = now_s + _RECONCILE_S
        self._gap_s = min(2 * self._gap_s, _MAX_GAP_S)
        self._last_start = now_s
        self._child = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._repairs_pid = self._child.pid
        self._child_fd = os.pidfd_open(self._child.pid)
        self._poll.register(self._child_fd, select.EPOLLIN)

    def _ended(self, child: subprocess.Popen[str], now_s: float) -> list[str] | None:
        """What was heard while it ran may be its own work or somebody's: the next one sees."""
        self._child = None
        self._poll.unregister(self._child_fd)
        os.close(self._child_fd)
        output = (child.stdout.read() if child.stdout else "").strip()
        if child.returncode:
            self._backoff_s = min(self._backoff_s * 2, _MAX_BACKOFF_S)
            self.listen(now_s)
            self._due, self._cause = now_s + self._backoff_s, True
            how = output or f"it ended with {child.returncode}"
            self._journal.tell(events.REPAIR_FAILED, error=how)
            self.health = replace(self.health, failed=how)
            return None
        self._backoff_s = 1.0
        changes = [line for line in output.splitlines() if line and line != "no change"]
        self.health = replace(self.health, failed="")
        if changes:
            self.repairs += 1
            self.health = replace(self.health, healed_s=time.time(), changes=changes)
            self._journal.tell(events.HEALED, changes="; ".join(changes))
        return changes if changes or self._repairs_cause else None

    def _wan_moved(self) -> bool:
        """Whether the default route has found another device; without any there is none to go."""
        try:
            return wan_link(self._settings).ifindex != self._devices[1]
        except Refused:
            return False

    def _let_uploads_pass(self) -> None:
        """A redirect to a device that is gone or down drops: better unlimited than that."""
        tc = Tc()
        try:
            if is_link_up(tc.netlink, self._devices[0]):
                return  # an old message: the repair was faster
            count = tc.stop_redirecting(self._devices[1], self._settings.major)
        except KernelRefused as error:
            self._journal.tell(events.KERNEL, error=str(error), effect="uploads may be dropped")
        else:
            if count:
                self._journal.tell(
                    events.KERNEL,
                    error=f"{self._settings.ifb} is gone or down",
                    effect="uploads pass without limit until it is healed",
                )
        finally:
            tc.close()
